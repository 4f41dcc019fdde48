"""Long documents drawn more often than short ones, with the mixture of domains kept."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxext.data.corpus import Corpus, Row, Rows
from ctxext.data.sources.base import Source, TextSource
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Upsampled(Source):
    """Documents of at least `min_tokens` tokens are drawn `factor` times as often as shorter ones.

    Each domain keeps its share of the tokens (arXiv 2402.10171); the domains are the sources that
    `ctxext prepare` was given; any other source counts as one domain. For other shares, `Mix`
    directories of one domain each. Tokens are counted with BOS and EOS.
    """

    source: TextSource
    """The documents."""
    min_tokens: int
    """Documents of at least this many tokens are drawn more often."""
    factor: float
    """How many times as often."""

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or not 0 < self.factor < math.inf:
            raise ValueError(
                "min_tokens must be at least 1 and factor above 0, "
                f"got {self.min_tokens}, {self.factor}"
            )

    def open(self, tokenizer: TokenizerLike) -> "UpsampledRows":
        return UpsampledRows(self.source.open(tokenizer), self.min_tokens, self.factor)


def document_weights(
    lengths: np.ndarray, domains: tuple[int, ...], min_tokens: int, factor: float
) -> np.ndarray:
    """How often each document is drawn, float64[documents] (per-source length upsampling).

    In domain d, document i of n_i tokens is drawn `factor` times as often if n_i >= min_tokens
    (w_i = factor, else 1), and the domain keeps its share m_d of all tokens:
    q_i = m_d w_i / sum_{j in d} w_j n_j, so that a token belongs to document i with probability
    q_i n_i and to domain d with probability m_d (arXiv 2402.10171). The paper keeps one in ten of
    the documents below 4096 tokens, a factor of 10.
    """
    weights = np.where(lengths >= min_tokens, float(factor), 1.0)
    for last, count in zip(np.cumsum(domains), domains, strict=True):
        domain = slice(last - count, last)
        if count:
            weights[domain] *= lengths[domain].sum() / (weights[domain] @ lengths[domain])
    return weights / lengths.sum()


class UpsampledRows(Rows):
    """Windows of an endless stream of documents drawn with the weights of `document_weights`."""

    def __init__(self, corpus: Corpus, min_tokens: int, factor: float) -> None:
        if corpus.is_answer is not None:
            raise ValueError(
                "chat and instruction records are packed whole and cannot be upsampled by length: "
                "mix directories of them by weight (Mix)"
            )
        self.corpus = corpus
        self.min_tokens = min_tokens
        self.factor = factor
        self.lengths = np.diff(corpus.offsets)
        if not len(self.lengths) or self.lengths.max() < min_tokens:
            raise ValueError(
                f"no document has the {min_tokens} tokens from which on it is upsampled: "
                "lower min_tokens"
            )
        weights = document_weights(self.lengths, corpus.domains, min_tokens, factor)
        # A window that starts at a random token of the stream starts in document i with probability
        # q_i n_i; every further document is i with a probability proportional to q_i.
        self._first = np.cumsum(weights * self.lengths)
        self._next = np.cumsum(weights)

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        """A window that starts anywhere in the stream.

        If it starts inside a document, it has BOS in place of its first token.
        """
        document = _draw(rng, self._first)
        start = rng.integers(self.lengths[document])
        excerpts: list[np.ndarray] = []
        missing = seq_len + 1
        while missing:
            begin = self.corpus.offsets[document] + start
            end = min(begin + missing, self.corpus.offsets[document + 1])
            excerpts.append(self.corpus.ids[begin:end])
            missing -= len(excerpts[-1])
            document = _draw(rng, self._next)
            start = 0
        ids = self.corpus.checked(np.concatenate(excerpts)).astype(np.int32)
        if self.corpus.bos_id is not None:
            ids[0] = self.corpus.bos_id
        numbers = np.arange(1, len(excerpts) + 1, dtype=np.int32)
        segments = np.repeat(numbers, [len(excerpt) for excerpt in excerpts])
        weights = (segments[1:] == segments[:-1]).astype(np.float32)
        return Row(ids[:-1], ids[1:], weights, segments[:-1])

    def provenance(self) -> dict[str, Any]:
        return {
            "kind": "upsampled",
            "min_tokens": self.min_tokens,
            "factor": self.factor,
            "domains": list(self.corpus.domains),
            "rows": self.corpus.provenance(),
        }


def _draw(rng: np.random.Generator, cumulative: np.ndarray) -> int:
    """An index with probability proportional to the steps of `cumulative`."""
    index = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    # The product may be rounded up to the last step itself.
    return min(int(index), len(cumulative) - 1)
