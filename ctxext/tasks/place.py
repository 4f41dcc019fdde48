"""Pieces of text put into a haystack so that the prompt is exact to the token."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.tasks.base import Encoder, Haystack, beginning, draw_haystack


class Placed(NamedTuple):
    """prompt: int32[P]; starts: where each piece begins in it; depths: 0..1 of the haystack, as achieved.

    haystack: pieces [document, start, length] of the text around.
    """

    prompt: np.ndarray
    starts: list[int]
    depths: list[float]
    haystack: list[list[int]]


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
    haystack: Haystack,
) -> Placed:
    """BOS, `head`, the haystack with `pieces` (depth, ids) in it, `tail`: `seq_len` tokens with `room` for the answer.

    A piece of depth None goes anywhere; of equal depths the earlier piece comes first. seq_len None: no haystack at
    all, the pieces in any order. Raises ValueError if it cannot fit.
    """
    head = [*beginning(tokenizer), *head]
    needed = len(head) + sum(len(ids) for _, ids in pieces) + len(tail) + room
    bare, seq_len = seq_len is None, needed if seq_len is None else seq_len
    if needed > seq_len:
        raise ValueError(f"{task}: a prompt of {seq_len} tokens cannot hold {len(pieces)} record(s), the question and "
                         f"the answer; the shortest is {needed} tokens")  # fmt: skip
    for depth, _ in pieces:
        if depth is not None and not 0 <= depth <= 1:
            raise ValueError(f"{task}: depth {depth} is outside 0..1")
    filler, drawn = draw_haystack(rng, haystack, seq_len - needed)
    cuts = [int(rng.integers(len(filler) + 1)) if d is None else round(d * len(filler)) for d, _ in pieces]
    order = sorted(range(len(pieces)), key=lambda i: (cuts[i], i))
    if bare:  # without depths to sort by, what is asked must not always come first
        order = rng.permutation(len(pieces)).tolist()
    parts: list[Any] = [head]
    starts, used, length = [0] * len(pieces), 0, len(head)
    for i in order:
        parts += [filler[used : cuts[i]], pieces[i][1]]
        starts[i] = length + cuts[i] - used
        length, used = starts[i] + len(pieces[i][1]), cuts[i]
    parts += [filler[used:], tail]
    prompt = np.concatenate([np.asarray(part, np.int32) for part in parts])
    return Placed(prompt, starts, [cut / len(filler) if len(filler) else 0.0 for cut in cuts], drawn)
