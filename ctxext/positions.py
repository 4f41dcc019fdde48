"""The second seam: which position every training token is given."""

import abc
import dataclasses
from typing import ClassVar

import numpy as np


class Positions(abc.ABC):
    """Training-time positions. Subclasses are frozen dataclasses and final.

    Positions are drawn on the host, where the batch is made, from the generator of that (seed, step, row).
    """

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Position ids, int32 [B, T], increasing along a row."""


@dataclasses.dataclass(frozen=True)
class Contiguous(Positions):
    """Position = index in the row."""

    paper: ClassVar[str] = ""

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
