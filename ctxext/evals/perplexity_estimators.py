"""How papers estimate perplexity: where their windows are, what they score, what they average."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ctxext.evals.record import Mean


class Span(NamedTuple):
    """A window over the tokens start .. stop - 1 of a text; those from `scored` on are scored."""

    start: int
    stop: int
    scored: int


def rolling(num_tokens: int, width: int, stride: int) -> list[Span]:
    """Windows of `width` tokens every `stride`; the last may be short.

    Each scores the tokens that the one before did not reach.
    """
    spans = []
    reached = 0
    for start in range(0, num_tokens, stride):
        stop = min(start + width, num_tokens)
        spans.append(Span(start, stop, reached))
        reached = stop
        if reached == num_tokens:
            break
    return spans


def whole(num_tokens: int, width: int, stride: int) -> list[Span]:
    """Full windows every `stride`, all of whose tokens are scored.

    As in the published code, the last window that fits is left out.
    """
    starts = range(0, num_tokens - width, stride)[:-1]
    return [Span(start, start + width, start) for start in starts]


def first(num_tokens: int, width: int, stride: int) -> list[Span]:
    """The first `width` tokens."""
    return [Span(0, min(width, num_tokens), 0)]


@dataclass(frozen=True)
class Estimator:
    """One way to estimate perplexity.

    spans: (tokens of the text, text tokens per window, stride) -> windows.
    stream: all documents form one text and windows cross them; else every document is a text.
    bos: where a beginning-of-sequence token goes: in front of every "window" (of which it takes up
    one token), in front of the "text" alone, or "never".
    mean: exp of the mean over tokens, or of the mean over windows of each window's mean.
    """

    spans: Callable[[int, int, int], list[Span]]
    stream: bool
    bos: Literal["window", "text", "never"]
    mean: Mean


ESTIMATORS = {
    # The recipe in the documentation of transformers, "Perplexity of fixed-length models".
    "token": Estimator(rolling, stream=True, bos="text", mean="token"),
    # YaRN (arXiv 2309.00071), eval/perplexity.py: the first window weighs as much as any later
    # one, which scores `stride` tokens.
    "yarn": Estimator(rolling, stream=False, bos="window", mean="window"),
    # Position Interpolation (arXiv 2306.15595) with a stride of 256, and PoSE (arXiv 2309.10400)
    # with 1,024: eval_ppl.py of PoSE.
    "pi": Estimator(rolling, stream=False, bos="window", mean="token"),
    # LongLoRA (arXiv 2309.12307), eval.py.
    "longlora": Estimator(whole, stream=True, bos="never", mean="window"),
    # YaRN's option --truncate, which its published tables use.
    "truncate": Estimator(first, stream=False, bos="window", mean="window"),
}


class Window(NamedTuple):
    """A window to read: `head` and `text`, of which the last `scored` tokens are predicted."""

    document: int
    """The document of the first token that is scored."""
    head: np.ndarray
    text: np.ndarray
    scored: int

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([self.head, self.text])


def windows(
    estimator: Estimator,
    documents: Sequence[np.ndarray],
    *,
    seq_len: int,
    stride: int,
    bos: list[int],
    separator: list[int],
) -> list[Window]:
    """The windows of `seq_len` tokens over documents, in order.

    separator: ids between the documents of a stream.
    """
    texts = [np.asarray(document, np.int32) for document in documents]
    starts = np.zeros(1, int)  # where each document starts in a stream
    if estimator.stream:
        between = np.asarray(separator, np.int32)
        head = np.asarray(bos if estimator.bos == "text" else [], np.int32)
        sizes = [len(text) + len(between) for text in texts[:-1]]
        starts = np.cumsum([0, *sizes]) + len(head)
        parts = [part for text in texts for part in (between, text)][1:]
        texts = [np.concatenate([head, *parts])]
    head = np.asarray(bos if estimator.bos == "window" else [], np.int32)
    result = []
    for number, text in enumerate(texts):
        for start, stop, scored in estimator.spans(len(text), seq_len - len(head), stride):
            # The first token of a window has nothing before it and is never predicted.
            count = min(stop - scored, len(head) + stop - start - 1)
            document = number
            if estimator.stream:
                document = int(np.searchsorted(starts, stop - count, side="right")) - 1
            result.append(Window(document, head, text[start:stop], count))
    return result
