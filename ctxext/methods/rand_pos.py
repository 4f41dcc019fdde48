"""Randomised positional encodings (arXiv 2305.16843)."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.positions import Positions, check_reach


@dataclasses.dataclass(frozen=True)
class RandPos(Positions):
    """T of the positions 0 .. L' - 1, sorted, every set as likely as any other (2305.16843).

    The limit of PoSE with as many chunks as tokens. Neighbours are L' / T apart on average, which
    a model that was pre-trained on neighbours one apart does not read well: a control more than a
    recipe (arXiv 2309.10400). L' = `max_position_embeddings`, tokens. Raises ValueError if T
    exceeds it.
    """

    paper: ClassVar[str] = "2305.16843"
    max_position_embeddings: int

    def __post_init__(self) -> None:
        check_reach(self)

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        B, T = shape
        check_reach(self, T)
        rows = [
            rng.choice(self.max_position_embeddings, T, replace=False, shuffle=False)
            for _ in range(B)
        ]
        return np.sort(np.reshape(rows, shape), axis=1).astype(np.int32)
