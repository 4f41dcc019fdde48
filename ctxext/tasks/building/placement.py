"""Pieces of text put into a haystack so that the prompt is exact to the token."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.tasks.base import Encoder, Haystack, beginning, draw_haystack

Draw = Callable[[int], tuple[np.ndarray, list[list[int]]]]
"""So many tokens of text around what is asked for, and their pieces, as `draw_haystack` gives them."""


class Placed(NamedTuple):
    """prompt: int32[P]; starts: where each piece begins in it; depths: 0..1 of the haystack, as achieved.

    haystack: pieces [document, start, length] of the text around.
    """

    prompt: np.ndarray
    starts: list[int]
    depths: list[float]
    haystack: list[list[int]]


def check_depth(depth: float | None, task: str) -> None:
    """Raises ValueError unless `depth` is None or in 0..1."""
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"{task}: depth {depth} is outside 0..1")


def place(
    rng: np.random.Generator,
    tokenizer: Encoder,
    seq_len: int | None,
    pieces: Sequence[tuple[float | None, Sequence[int]]],
    *,
    task: str,
    head: Sequence[int] = (),
    tail: Sequence[int],
    room: int,
    haystack: Haystack | Draw,
    ordered: bool = False,
) -> Placed:
    """BOS, `head`, the haystack with `pieces` (depth, ids) in it, `tail`: `seq_len` tokens with `room` for the answer.

    A piece of depth None goes anywhere; of equal depths the earlier piece comes first. seq_len None: no haystack at
    all, the pieces in any order, or as they are if `ordered`. Raises ValueError if it cannot fit.
    """
    head = [*beginning(tokenizer), *head]
    needed = len(head) + sum(len(ids) for _, ids in pieces) + len(tail) + room
    bare, seq_len = seq_len is None, needed if seq_len is None else seq_len
    if needed > seq_len:
        raise ValueError(
            f"{task}: a prompt of {seq_len} tokens cannot hold {len(pieces)} record(s), the question and "
            f"the answer with a tokenizer of {tokenizer.vocab_size} ids; the shortest is {needed} "
            "tokens"
        )
    left = seq_len - needed
    filler, drawn = haystack(left) if callable(haystack) else draw_haystack(rng, haystack, left)
    cuts = [_cut(rng, depth, len(filler), task) for depth, _ in pieces]
    order = sorted(range(len(pieces)), key=lambda i: (cuts[i], i))
    if bare and not ordered:  # without depths to sort by, what is asked must not always come first
        order = rng.permutation(len(pieces)).tolist()
    parts: list[Any] = [head]
    starts, used, length = [0] * len(pieces), 0, len(head)
    for i in order:
        parts += [filler[used : cuts[i]], pieces[i][1]]
        starts[i] = length + cuts[i] - used
        length, used = starts[i] + len(pieces[i][1]), cuts[i]
    parts += [filler[used:], tail]
    prompt = np.concatenate([np.asarray(part, np.int32) for part in parts])
    return Placed(
        prompt, starts, [cut / len(filler) if len(filler) else 0.0 for cut in cuts], drawn
    )


def place_between(
    rng: np.random.Generator,
    tokenizer: Encoder,
    seq_len: int | None,
    pieces: Sequence[tuple[float | None, Sequence[int]]],
    lines: Sequence[Sequence[int]],
    *,
    task: str,
    room: int,
    haystack: Haystack,
) -> Placed:
    """As `place`, but the haystack is `lines` and a piece stands between two of them; text before them fills up.

    Depths are shares of `lines`, so that at 0 only that text comes before a piece.
    """
    cuts = [_cut(rng, depth, len(lines), task) for depth, _ in pieces]
    order = sorted(
        [*((cut, 0, i) for i, cut in enumerate(cuts)), *((i, 1, i) for i in range(len(lines)))]
    )
    ids = [lines[i] if kind else pieces[i][1] for _, kind, i in order]
    placed = place(
        rng,
        tokenizer,
        seq_len,
        [(1.0, line) for line in ids],
        task=task,
        tail=(),
        room=room,
        haystack=haystack,
        ordered=True,
    )
    starts = {
        i: start for (_, kind, i), start in zip(order, placed.starts, strict=True) if not kind
    }
    depths = [cut / len(lines) if lines else 0.0 for cut in cuts]
    return placed._replace(starts=[starts[i] for i in range(len(pieces))], depths=depths)


def _cut(rng: np.random.Generator, depth: float | None, size: int, task: str) -> int:
    check_depth(depth, task)
    return int(rng.integers(size + 1)) if depth is None else round(depth * size)
