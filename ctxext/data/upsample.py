"""Long documents seen more often than short ones, the mixture of domains kept: weights over stored tokens."""

from typing import Any

import numpy as np

from ctxext.data.corpus import Corpus, Row, Rows


def document_weights(
    lengths: np.ndarray, domains: tuple[int, ...], min_tokens: int, factor: float
) -> np.ndarray:
    """How often each document is drawn, float64[documents], arXiv 2402.10171 (per-source length upsampling).

    In domain d, document i of n_i tokens is drawn `factor` times as often if n_i >= min_tokens (w_i = factor, else 1),
    and the domain keeps its share m_d of all tokens: q_i = m_d w_i / sum_{j in d} w_j n_j, so that a token belongs to
    document i with probability q_i n_i and to domain d with probability m_d. The paper keeps one in ten of the
    documents below 4096 tokens, a factor of 10.
    """
    drawn = np.where(lengths >= min_tokens, float(factor), 1.0)
    for last, count in zip(np.cumsum(domains), domains, strict=True):
        part = slice(last - count, last)
        if count:
            drawn[part] *= lengths[part].sum() / (drawn[part] @ lengths[part])
    return drawn / lengths.sum()


class UpsampledRows(Rows):
    """Windows of an endless stream of documents drawn one by one with the weights of `document_weights`."""

    def __init__(self, corpus: Corpus, min_tokens: int, factor: float) -> None:
        self.corpus, self.min_tokens, self.factor = corpus, min_tokens, factor
        self.lengths = np.diff(corpus.offsets)
        if not len(self.lengths) or self.lengths.max() < min_tokens:
            raise ValueError(
                f"no document has the {min_tokens} tokens from which on it is upsampled: lower min_tokens"
            )
        drawn = document_weights(self.lengths, corpus.domains, min_tokens, factor)
        # A window that starts at a random token of the stream starts in document i with probability q_i n_i.
        self._first, self._next = np.cumsum(drawn * self.lengths), np.cumsum(drawn)

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        """A window that starts anywhere in the stream; inside a document, with BOS in place of its first token."""
        number = _draw(rng, self._first)
        start = rng.integers(self.lengths[number])
        pieces: list[np.ndarray] = []
        missing = seq_len + 1
        while missing:
            begin = self.corpus.offsets[number] + start
            pieces.append(
                self.corpus.ids[begin : min(begin + missing, self.corpus.offsets[number + 1])]
            )
            missing -= len(pieces[-1])
            number, start = _draw(rng, self._next), 0
        ids = np.concatenate(pieces).astype(np.int32)
        if self.corpus.bos_id is not None:
            ids[0] = self.corpus.bos_id
        segments = np.repeat(
            np.arange(1, len(pieces) + 1, dtype=np.int32), [len(piece) for piece in pieces]
        )
        weights = (segments[1:] == segments[:-1]).astype(np.float32)
        return Row(ids[:-1], ids[1:], weights, segments[:-1])

    def provenance(self) -> dict[str, Any]:
        upsampled = {"kind": "upsampled", "min_tokens": self.min_tokens, "factor": self.factor}
        return {**upsampled, "domains": list(self.corpus.domains), "rows": self.corpus.provenance()}


def _draw(rng: np.random.Generator, cumulative: np.ndarray) -> int:
    """An index with probability proportional to the steps of `cumulative`."""
    number = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return min(
        int(number), len(cumulative) - 1
    )  # the product may be rounded up to the last step itself
