"""Passkey retrieval as papers ran it, by name."""

from collections.abc import Sequence
from pathlib import Path

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
"""Papers differ in what counts as success, so that their lengths are not comparable. YaRN (arXiv
2309.00071): a rate of 0.8 at the length. Position Interpolation (arXiv 2306.15595): 0.2 there and
at all shorter lengths, which are distances of the key from the end. LongLoRA (arXiv 2309.12307): 1.
Landmark attention (arXiv 2305.16300) states none."""


def passkey_protocol(
    name: str,
    seq_lens: Sequence[int],
    *,
    text: str | Path | None = None,
    n: int | None = None,
    seed: int = 0,
) -> Retrieval:
    """The questions of a published procedure.

    n: questions per length and depth; None: as many as published. text: a JSON file with the
    authors' wording (`tasks.building.published_passkeys.Wording`); None: ours. Seeds are ours in
    any case.

    Raises ValueError for an unknown name or a file that holds no wording.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"there is no passkey protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    task = protocol(wording=Wording() if text is None else read_wording(text))
    return Retrieval(
        tuple(seq_lens), depths=protocol.depths(), n=n or protocol.trials, task=task, seed=seed
    )
