"""Published perplexities are different estimators: where their windows lie, what they score, what they average."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


class Span(NamedTuple):
    """A window over tokens start .. stop - 1 of a text; those from `scored` on are predicted."""

    start: int
    stop: int
    scored: int


def rolling(size: int, room: int, stride: int) -> list[Span]:
    """Windows of `room` tokens every `stride`; each scores what the one before did not reach. The last may be short."""
    spans, reached = [], 0
    for start in range(0, size, stride):
        spans.append(Span(start, min(start + room, size), reached))
        reached = spans[-1].stop
        if reached == size:
            break
    return spans


def whole(size: int, room: int, stride: int) -> list[Span]:
    """Full windows every `stride`, every token of each scored; the published code leaves out the last that fits."""
    return [Span(start, start + room, start) for start in range(0, size - room, stride)[:-1]]


def first(size: int, room: int, stride: int) -> list[Span]:
    """The first `room` tokens."""
    return [Span(0, min(room, size), 0)]


@dataclass(frozen=True)
class Estimator:
    """spans: (size of the text, text tokens that a window has room for, stride) -> windows.

    stream: all documents make one text, and windows cross them; else every document is a text.
    bos: a beginning-of-sequence token in front of every "window" (it takes up room), of the "text" alone, or never.
    mean: exp of the mean over tokens, or of the mean over windows of the mean over a window's tokens.
    """

    spans: Callable[[int, int, int], list[Span]]
    stream: bool
    bos: Literal["window", "text", "never"]
    mean: Literal["token", "window"]


ESTIMATORS = {
    # the recipe in the documentation of transformers, "Perplexity of fixed-length models"
    "token": Estimator(rolling, stream=True, bos="text", mean="token"),
    # YaRN (arXiv 2309.00071), eval/perplexity.py: the first window weighs as much as any that scores `stride` tokens
    "yarn": Estimator(rolling, stream=False, bos="window", mean="window"),
    # Position Interpolation (arXiv 2306.15595) with S = 256 and PoSE (arXiv 2309.10400) with 1,024: eval_ppl.py of PoSE
    "pi": Estimator(rolling, stream=False, bos="window", mean="token"),
    # LongLoRA (arXiv 2309.12307), eval.py
    "longlora": Estimator(whole, stream=True, bos="never", mean="window"),
    # YaRN's --truncate, behind its published tables
    "truncate": Estimator(first, stream=False, bos="window", mean="window"),
}


class Window(NamedTuple):
    """`head` and `text` are read, the last `scored` tokens predicted; the first of them is from `document`."""

    document: int
    head: np.ndarray
    text: np.ndarray
    scored: int

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([self.head, self.text])


def windows(
    how: Estimator,
    documents: Sequence[np.ndarray],
    *,
    seq_len: int,
    stride: int,
    bos: list[int],
    joint: list[int],
) -> list[Window]:
    """The windows of `seq_len` tokens over documents, in order. joint: what stands between documents in a stream."""
    texts, starts = [np.asarray(document, np.int32) for document in documents], np.zeros(1, int)
    if how.stream:
        parts = [part for text in texts for part in (np.asarray(joint, np.int32), text)][1:]
        head = np.asarray(bos if how.bos == "text" else [], np.int32)
        starts = np.cumsum([0, *(len(text) + len(joint) for text in texts[:-1])]) + len(head)
        texts = [np.concatenate([head, *parts])]
    before = np.asarray(bos if how.bos == "window" else [], np.int32)
    found = []
    for number, text in enumerate(texts):
        for start, stop, scored in how.spans(len(text), seq_len - len(before), stride):
            count = min(
                stop - scored, len(before) + stop - start - 1
            )  # a window's first token has nothing before it
            owner = (
                int(np.searchsorted(starts, stop - count, side="right")) - 1
                if how.stream
                else number
            )
            found.append(Window(owner, before, text[start:stop], count))
    return found
