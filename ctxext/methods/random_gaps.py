"""Giraffe's randomised positions (arXiv 2308.10882)."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.positions import Positions, check_reach


@dataclasses.dataclass(frozen=True)
class RandomGaps(Positions):
    """p_j = j + floor((L' - T) s_j / max(s_T, T)), s_j a sum of j + 1 draws 2 U[0, 1) (2308.10882).

    Giraffe draws gaps between tokens as real numbers, uniform from almost 0 to 2 with mean 1, and
    shrinks a row that becomes longer than its T tokens. Here a position counts steps of T / L'
    tokens: with F = L' / T a gap is 1 / F + 2 U (1 - 1 / F) tokens, so that positions are whole and
    increase strictly. It is meant for use with Linear(F), which makes tokens of steps again.
    L' = `max_position_embeddings`. Raises ValueError if T exceeds it.
    """

    aliases: ClassVar[tuple[str, ...]] = ("giraffe-randomised",)
    paper: ClassVar[str] = "2308.10882"
    max_position_embeddings: int

    def __post_init__(self) -> None:
        check_reach(self)

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        T = shape[1]
        check_reach(self, T)
        sums = np.cumsum(2 * rng.random(shape), axis=1)
        shares = sums / np.maximum(sums[:, -1:], T)
        skipped = np.floor((self.max_position_embeddings - T) * shares)
        return (np.arange(T) + skipped).astype(np.int32)
