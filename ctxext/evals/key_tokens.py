"""Key tokens, those that only a long context explains: found by a model, given, or planted (arXiv 2410.23771)."""

import abc
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from ctxext.evals.base import Model, batches, item_rng
from ctxext.tasks import Task, TaskContext
from ctxext.tasks.base import bos_prefix

Spans = tuple[tuple[int, int], ...]
"""Characters [start, end) of a text, ascending."""


class Keyed(NamedTuple):
    """What the model under test reads, int [T], and the positions of its key tokens; 0 is none, it has no loss."""

    ids: np.ndarray
    keys: np.ndarray


@dataclass(frozen=True)
class Keys(abc.ABC):
    """Says which tokens of a document are key tokens."""

    type_tag: ClassVar[str] = "key-tokens/"

    @property
    @abc.abstractmethod
    def origin(self) -> str:
        """Where they come from, in words for rows."""

    @abc.abstractmethod
    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> Keyed:
        """The key tokens of the beginning of document `number` of the source, token ids without BOS."""


@dataclass(frozen=True)
class Found(Keys):
    """Key: loss after trunc_len .. trunc_len + stride - 1 tokens - loss after all > alpha, and the latter < beta.

    evaluator: the model that finds them, a name or path that `load` can open; "" is the model under test itself, whose
    keys are then its own: to compare models, take one evaluator for all. Tokenizers may differ: keys go over as spans
    of characters. As published the evaluator reads BOS, the model under test does not.
    Raises ValueError for a document of at most trunc_len tokens.
    """

    trunc_len: int = 4096
    stride: int = 1024
    alpha: float = 2.0
    beta: float = 2.0
    evaluator: str = ""
    load: Callable[[str], Model] | None = field(default=None, repr=False)
    batch_tokens: int = field(default=16_384, repr=False)

    def __post_init__(self) -> None:
        if self.trunc_len < 1 or self.stride < 1:
            raise ValueError(
                f"longppl: trunc_len {self.trunc_len} and stride {self.stride} must be at least 1"
            )
        if self.evaluator and self.load is None:
            raise ValueError(
                "longppl: give `load`, which opens the evaluator, for example ctxext.load"
            )

    @property
    def origin(self) -> str:
        return self.evaluator or "the model itself"

    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> Keyed:
        text = lm.tokenizer.decode(document.tolist())
        ids, spans = lm.tokenizer.spans(text)
        return Keyed(
            np.asarray(ids),
            inside(spans, _of(self, text) if self.evaluator else key_spans(lm, text, self)),
        )


@functools.lru_cache(maxsize=1)
def _evaluator(load: Callable[[str], Model], name: str) -> Model:
    return load(name)


@functools.lru_cache(maxsize=1024)  # the same for every model under test
def _of(found: Found, text: str) -> Spans:
    assert found.load is not None
    return key_spans(_evaluator(found.load, found.evaluator), text, found)


@dataclass(frozen=True)
class Given(Keys):
    """Character spans for each document of the source, by its number."""

    spans: tuple[Spans, ...]

    @property
    def origin(self) -> str:
        return "given spans"

    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> Keyed:
        if number >= len(self.spans):
            raise ValueError(
                f"longppl: no spans are given for document {number}, only for {len(self.spans)}"
            )
        ids, spans = lm.tokenizer.spans(lm.tokenizer.decode(document.tolist()))
        return Keyed(np.asarray(ids), inside(spans, self.spans[number]))


@dataclass(frozen=True)
class Answers(Keys):
    """The answer tokens of a retrieval task whose record is hidden in the document at `depth` (0 is first)."""

    task: Task
    depth: float = 0.0

    @property
    def origin(self) -> str:
        return f"answers of {self.task.name}"

    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> Keyed:
        size = len(document) + len(bos_prefix(lm.tokenizer))
        context = TaskContext(item_rng(item), lm.tokenizer, [document])
        example = self.task.example(context, size, self.depth)
        return Keyed(
            np.concatenate([example.prompt, example.answer]), np.arange(len(example.prompt), size)
        )


def key_spans(model: Model, text: str, how: Found) -> Spans:
    """Where `model` has its key tokens; neighbours are joined. Raises ValueError if the text is too short for any."""
    ids, spans = model.tokenizer.spans(text)
    head = bos_prefix(model.tokenizer)
    tokens, spans = np.asarray(head + ids, np.int32), [(0, 0)] * len(head) + list(spans)
    if len(tokens) <= how.trunc_len:
        raise ValueError(
            f"longppl: a document of {len(tokens)} tokens has no key tokens after trunc_len "
            f"{how.trunc_len}: give longer lengths or a smaller trunc_len"
        )
    long = np.append(np.nan, model.loss(tokens[None])[0])  # [t]: the loss of token t
    short = np.full(len(tokens), np.nan)
    size = how.trunc_len + how.stride
    starts = range(0, len(tokens) - how.trunc_len, how.stride)
    whole, last = (
        [s for s in starts if s + size <= len(tokens)],
        [s for s in starts if s + size > len(tokens)],
    )
    for batch in [*batches(whole, max(1, how.batch_tokens // size)), *([last] if last else [])]:
        windows = np.stack([tokens[s : s + size] for s in batch])
        for start, nats in zip(batch, model.loss(windows), strict=True):
            short[start + how.trunc_len : start + size] = nats[how.trunc_len - 1 :]
    with np.errstate(invalid="ignore"):
        keys = np.flatnonzero((short - long > how.alpha) & (long < how.beta))
    joined: list[tuple[int, int]] = []
    for start, stop in (spans[t] for t in keys):
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return tuple(joined)


def inside(tokens: Sequence[tuple[int, int]], spans: Spans) -> np.ndarray:
    """Positions of the tokens whose characters lie within one of the spans; never the first token."""
    if not spans:
        return np.zeros(0, int)
    starts, stops = np.asarray(sorted(spans)).T
    reach = np.append(
        -1, np.maximum.accumulate(stops)
    )  # the furthest end of all spans that start so early
    begin, end = np.asarray(tokens).reshape(-1, 2).T
    found = np.flatnonzero(end <= reach[np.searchsorted(starts, begin, side="right")])
    return found[found > 0]
