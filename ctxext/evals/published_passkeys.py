"""Passkey retrieval as others ran it, by name, and the length that each calls a success."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ctxext.evals.retrieval import Retrieval
from ctxext.tasks.building.published_passkeys import (
    PI,
    Landmark,
    LongLora,
    PasskeyProtocol,
    Wording,
    Yarn,
    read_wording,
)

PROTOCOLS: dict[str, type[PasskeyProtocol]] = {
    "landmark": Landmark,
    "yarn": Yarn,
    "pi": PI,
    "longlora": LongLora,
}


class Bar(NamedTuple):
    """rate: what a length must reach; every: whether all shorter ones must, too."""

    rate: float
    every: bool


BARS = {
    "yarn": Bar(0.8, every=False),
    "pi": Bar(0.2, every=True),
    "longlora": Bar(1, every=False),
    "pose": Bar(0.9, every=False),
}
"""Landmark attention states none. PI's lengths are distances of the key from the end. Bars are not comparable."""


def passkey_protocol(
    name: str,
    seq_lens: Sequence[int],
    *,
    text: str | Path | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Retrieval:
    """The questions of a published procedure, `n` per length and depth (None: as many as published).

    text: a JSON file with the authors' own wording (`tasks.protocols.Wording`); None: ours. Seeds are ours in any case.
    Raises ValueError for an unknown name or a file that is no wording.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"there is no passkey protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    kind = PROTOCOLS[name]
    task = kind(wording=Wording() if text is None else read_wording(text))
    return Retrieval(
        tuple(seq_lens), depths=kind.depths(), n=n or kind.trials, task=task, seed=seed
    )


def reached(name: str, lengths: Sequence[int], correct: Sequence[float | int]) -> int | None:
    """The largest length whose rate of right answers reaches the bar of `name`; None if none does.

    lengths: tokens of each question, as asked for (PI: distances of the key from the end); correct: 0 or 1 for each.
    Raises ValueError for a procedure without a bar, and for sequences of different lengths.
    """
    if name not in BARS:
        raise ValueError(f"{name!r} has no bar; known: {', '.join(BARS)}")
    bar, answers = BARS[name], dict[int, list[float]]()
    for length, right in zip(lengths, correct, strict=True):
        answers.setdefault(length, []).append(right)
    above = {
        length: sum(rights) / len(rights) >= bar.rate for length, rights in sorted(answers.items())
    }
    if bar.every:
        short = [length for length, enough in above.items() if not enough]
        above = {
            length: enough and not (short and length > short[0]) for length, enough in above.items()
        }
    return max((length for length, enough in above.items() if enough), default=None)
