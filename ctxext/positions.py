"""The second seam: which position every training token is given."""

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np


class Positions(abc.ABC):
    """Training-time positions. Subclasses are frozen dataclasses and final.

    Positions are drawn on the host, where the batch is made, from the generator of that (seed, step, row).
    """

    type_tag: ClassVar[str] = "positions/"

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Position ids, int32 [B, T], strictly increasing along a row."""


@dataclasses.dataclass(frozen=True)
class Contiguous(Positions):
    """Position = index in the row."""

    paper: ClassVar[str] = ""

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)


def check_reach(method: Any, length: int | None = None) -> None:
    """Raises ValueError unless the positions of `method` are enough for a row of `length` tokens, and fit 32 bits."""
    reach, name = method.max_position_embeddings, type(method).__name__
    if not 1 <= reach <= 2**31:
        raise ValueError(
            f"{name}: max_position_embeddings must be from 1 to {2**31} (32-bit positions), got {reach}"
        )
    if length is not None and reach < length:
        raise ValueError(
            f"{name} reaches {reach} positions, fewer than the {length} tokens of a row; raise "
            f"positions.max_position_embeddings to at least {length}"
        )
