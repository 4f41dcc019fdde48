"""Key tokens: the tokens of a text that only a long context explains (arXiv 2410.23771)."""

import abc
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, NamedTuple

import numpy as np

from ctxext.evals.base import Model, batches
from ctxext.tasks.base import bos_prefix

Spans = tuple[tuple[int, int], ...]
"""Character spans [start, end) of a text, ascending."""


class KeyedText(NamedTuple):
    """A text with its key tokens."""

    ids: np.ndarray
    """The ids that the model under test reads, int [T]."""
    keys: np.ndarray
    """Positions of key tokens, never 0, which has no loss."""


@dataclass(frozen=True)
class Keys(abc.ABC):
    """Decides which tokens of a document are key tokens."""

    type_tag: ClassVar[str] = "key-tokens/"

    @property
    @abc.abstractmethod
    def origin(self) -> str:
        """Where they come from, in words, for records."""

    @abc.abstractmethod
    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> KeyedText:
        """The text that `lm` reads, and its key tokens.

        document: token ids, without BOS, of the beginning of document `number` of the source.
        item: name of the evaluated item, which may seed what is drawn.
        """


@dataclass(frozen=True)
class ContrastiveKeys(Keys):
    """Tokens that a model predicts well with the whole context and badly with a truncated one.

    A key token has loss(short context) - loss(whole context) > alpha and loss(whole context) <
    beta, where the short context has trunc_len to trunc_len + stride - 1 tokens.

    evaluator: the model that finds them, a name or path for `load`; "" is the model under test,
    whose keys are then its own: to compare models, take one evaluator for all. weights: a checksum
    of its parameters, so that records of an evaluator that has changed are not taken for those of
    the present one. Tokenizers may differ, since keys are handed over as spans of characters. As
    published, the evaluator reads BOS and the model under test does not.

    Raises ValueError for a document of at most trunc_len tokens.
    """

    trunc_len: int = 4096
    stride: int = 1024
    alpha: float = 2.0
    beta: float = 2.0
    evaluator: str = ""
    load: Callable[[str], Model] | None = field(default=None, repr=False)
    batch_tokens: int = field(default=16_384, repr=False)
    weights: str = ""

    def __post_init__(self) -> None:
        if self.trunc_len < 1 or self.stride < 1:
            raise ValueError(
                f"longppl: trunc_len {self.trunc_len} and stride {self.stride} must be at least 1"
            )
        if self.evaluator and self.load is None:
            raise ValueError(
                "longppl: give `load`, which opens the evaluator, for example ctxext.load"
            )

    def __repr__(self) -> str:
        """The settings, which name the items; without `weights` where there are none."""
        shown = [f for f in fields(self) if f.repr and (f.name != "weights" or self.weights)]
        settings = [f"{f.name}={getattr(self, f.name)!r}" for f in shown]
        return f"ContrastiveKeys({', '.join(settings)})"

    @property
    def origin(self) -> str:
        return self.evaluator or "the model itself"

    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> KeyedText:
        text = lm.tokenizer.decode(document.tolist())
        ids, token_spans = lm.tokenizer.spans(text)
        spans = _evaluator_spans(self, text) if self.evaluator else key_spans(lm, text, self)
        return KeyedText(np.asarray(ids), tokens_inside(token_spans, spans))


@functools.lru_cache(maxsize=1)
def _evaluator(load: Callable[[str], Model], name: str) -> Model:
    return load(name)


@functools.lru_cache(maxsize=1024)  # the same for every model under test
def _evaluator_spans(keys: ContrastiveKeys, text: str) -> Spans:
    assert keys.load is not None
    return key_spans(_evaluator(keys.load, keys.evaluator), text, keys)


def key_spans(model: Model, text: str, keys: ContrastiveKeys) -> Spans:
    """Find the characters of the key tokens of `model`; adjacent tokens are joined.

    Raises ValueError if the text is too short for any.
    """
    text_ids, text_spans = model.tokenizer.spans(text)
    head = bos_prefix(model.tokenizer)
    tokens = np.asarray(head + text_ids, np.int32)
    spans = [(0, 0)] * len(head) + list(text_spans)
    if len(tokens) <= keys.trunc_len:
        raise ValueError(
            f"longppl: a document of {len(tokens)} tokens has no key tokens after trunc_len "
            f"{keys.trunc_len}: give longer lengths or a smaller trunc_len"
        )
    with_all = np.append(np.nan, model.loss(tokens[None])[0])  # [t]: the loss of token t
    with_few = _truncated_losses(model, tokens, keys)
    with np.errstate(invalid="ignore"):
        is_key = (with_few - with_all > keys.alpha) & (with_all < keys.beta)
    joined: list[tuple[int, int]] = []
    for start, stop in (spans[t] for t in np.flatnonzero(is_key)):
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return tuple(joined)


def _truncated_losses(model: Model, tokens: np.ndarray, keys: ContrastiveKeys) -> np.ndarray:
    """[t]: the loss of token t after trunc_len to trunc_len + stride - 1 tokens.

    NaN for the first trunc_len tokens.
    """
    losses = np.full(len(tokens), np.nan)
    size = keys.trunc_len + keys.stride
    starts = range(0, len(tokens) - keys.trunc_len, keys.stride)
    whole = [start for start in starts if start + size <= len(tokens)]
    short = [start for start in starts if start + size > len(tokens)]  # at most the last
    groups = list(batches(whole, max(1, keys.batch_tokens // size)))
    if short:
        groups.append(short)
    for batch in groups:
        windows = np.stack([tokens[start : start + size] for start in batch])
        for start, nll in zip(batch, model.loss(windows), strict=True):
            losses[start + keys.trunc_len : start + size] = nll[keys.trunc_len - 1 :]
    return losses


def tokens_inside(tokens: Sequence[tuple[int, int]], spans: Spans) -> np.ndarray:
    """Positions of the tokens whose characters are within one of the spans; never position 0."""
    if not spans:
        return np.zeros(0, int)
    starts, stops = np.asarray(sorted(spans)).T
    # [i]: the furthest end of the first i spans.
    furthest = np.append(-1, np.maximum.accumulate(stops))
    begin, end = np.asarray(tokens).reshape(-1, 2).T
    inside = np.flatnonzero(end <= furthest[np.searchsorted(starts, begin, side="right")])
    return inside[inside > 0]
