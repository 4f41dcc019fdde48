"""Spans of text inserted into a haystack so that the prompt is exact to the token."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from ctxext.tasks.base import TaskContext, as_ids

T = TypeVar("T")
DrawFiller = Callable[[int], tuple[np.ndarray, list[list[int]]]]
"""Returns that many tokens of text and their excerpts, like `draw_haystack`."""


class Insertion(NamedTuple):
    """A span of token ids and its depth in the haystack, 0..1; None: drawn."""

    depth: float | None
    ids: Sequence[int]


class Frame(NamedTuple):
    """The rest of a prompt, besides the haystack and its insertions.

    head: ids after BOS; tail: ids after the haystack; reserved: tokens kept free after the tail.
    """

    reserved: int
    head: Sequence[int] = ()
    tail: Sequence[int] = ()


class Placement(NamedTuple):
    """A prompt, int32[P], and where each insertion is.

    starts: first token of each insertion; depths: 0..1 of the haystack, as achieved; excerpts:
    [document, start, length] of the text around them.
    """

    prompt: np.ndarray
    starts: list[int]
    depths: list[float]
    excerpts: list[list[int]]


def check_depth(depth: float | None, task: str) -> None:
    """Raise ValueError unless `depth` is None or in 0..1."""
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"{task}: depth {depth} is outside 0..1")


def place(
    context: TaskContext,
    seq_len: int | None,
    insertions: Sequence[Insertion],
    frame: Frame,
    *,
    task: str,
    ordered: bool = False,
    draw_filler: DrawFiller | None = None,
) -> Placement:
    """BOS, head, the haystack with `insertions`, tail: `seq_len` tokens with those kept free.

    Of equal depths the earlier insertion comes first. seq_len None: no haystack, the insertions in
    random order, or as they are if `ordered`. draw_filler: draws the text around them; None: from
    the haystack. Raises ValueError if it does not fit.
    """
    head = [*context.bos, *frame.head]
    inserted = sum(len(insertion.ids) for insertion in insertions)
    needed = len(head) + inserted + len(frame.tail) + frame.reserved
    if seq_len is not None and needed > seq_len:
        raise ValueError(
            f"{task}: a prompt of {seq_len} tokens cannot hold {len(insertions)} record(s), the "
            f"question and the answer with a tokenizer of {context.tokenizer.vocab_size} ids; the "
            f"shortest is {needed} tokens"
        )
    free = 0 if seq_len is None else seq_len - needed
    filler, excerpts = (draw_filler or context.draw_haystack)(free)
    cuts = [_cut(context, insertion.depth, len(filler), task) for insertion in insertions]
    order = sorted(range(len(insertions)), key=lambda i: (cuts[i], i))
    if seq_len is None and not ordered:
        # Without depths to sort by, the needle asked for must not always come first.
        order = context.rng.permutation(len(insertions)).tolist()
    parts: list[Sequence[int] | np.ndarray] = [head]
    starts = [0] * len(insertions)
    length = len(head)
    used = 0
    for i in order:
        ids = insertions[i].ids
        parts += [filler[used : cuts[i]], ids]
        starts[i] = length + cuts[i] - used
        length = starts[i] + len(ids)
        used = cuts[i]
    parts += [filler[used:], frame.tail]
    prompt = np.concatenate([as_ids(part) for part in parts])
    depths = [cut / len(filler) if len(filler) else 0.0 for cut in cuts]
    return Placement(prompt, starts, depths, excerpts)


def place_between(
    context: TaskContext,
    seq_len: int | None,
    insertions: Sequence[Insertion],
    lines: Sequence[Sequence[int]],
    *,
    task: str,
    reserved: int,
) -> Placement:
    """Like `place` with `lines` as the haystack: insertions go between two of them.

    Haystack text before all lines fills the rest up. Depths are shares of `lines`, so that only
    that text comes before an insertion at depth 0.
    """
    cuts = [_cut(context, insertion.depth, len(lines), task) for insertion in insertions]
    # (line number, 0 for an insertion or 1 for a line, index): insertions come before their line.
    order = sorted(
        [*((cut, 0, i) for i, cut in enumerate(cuts)), *((i, 1, i) for i in range(len(lines)))]
    )
    ids = [lines[i] if is_line else insertions[i].ids for _, is_line, i in order]
    placement = place(
        context,
        seq_len,
        [Insertion(1.0, line) for line in ids],
        Frame(reserved),
        task=task,
        ordered=True,
    )
    starts = [0] * len(insertions)
    for (_, is_line, i), start in zip(order, placement.starts, strict=True):
        if not is_line:
            starts[i] = start
    depths = [cut / len(lines) if lines else 0.0 for cut in cuts]
    return placement._replace(starts=starts, depths=depths)


def lines_that_fit(lines: Iterator[T], max_tokens: int, size: Callable[[T], int]) -> list[T]:
    """The first of `lines`, as many as fit into `max_tokens`; size: the tokens of one."""
    fitting: list[T] = []
    for line in lines:
        max_tokens -= size(line)
        if max_tokens < 0:
            break
        fitting.append(line)
    return fitting


def _cut(context: TaskContext, depth: float | None, size: int, task: str) -> int:
    """How many of `size` tokens or lines come before an insertion of this depth."""
    check_depth(depth, task)
    if depth is None:
        return int(context.rng.integers(size + 1))
    return round(depth * size)
