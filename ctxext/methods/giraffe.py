"""Giraffe's two bases (arXiv 2308.10882): frequencies that fall by a power, or that are cut off."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


def _falling(base: RopeBase, factor: float, power: float) -> np.ndarray:
    pairs = base.head_dim // 2
    return base.inv_freq / factor * (1 - np.arange(pairs) / pairs) ** power


@dataclasses.dataclass(frozen=True)
class PowerBasis(RopeScaling):
    """f'_i = (f_i / factor) (1 - i / (d / 2))^power: the slower a pair, the more it is slowed (arXiv 2308.10882)."""

    paper: ClassVar[str] = "2308.10882"
    factor: float
    power: float

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not 0 < self.power < math.inf:
            raise ValueError(
                f"power must be positive and finite, such as 0.5, got {self.power}; 0 would be Linear"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(_falling(base, self.factor, self.power))


@dataclasses.dataclass(frozen=True)
class TruncatedBasis(RopeScaling):
    """f'_i = f if f >= c, c / 16 if c > f >= c / 8, else 0, with f = f_i / factor, c = 2 pi / T (arXiv 2308.10882).

    T = truncate_length is the training length in tokens: a pair that is kept turns once in it. With `power` above 0
    what is cut off is the power basis.
    """

    paper: ClassVar[str] = "2308.10882"
    factor: float
    truncate_length: int
    power: float = 0.0

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if self.truncate_length < 1:
            raise ValueError(
                "truncate_length must be at least 1, such as the window of pre-training, "
                f"got {self.truncate_length}"
            )
        if not 0 <= self.power < math.inf:
            raise ValueError(f"power must be a finite number from 0 (off) up, got {self.power}")

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        inv_freq, cutoff = _falling(base, self.factor, self.power), 2 * np.pi / self.truncate_length
        return Rope(
            np.where(
                inv_freq >= cutoff, inv_freq, np.where(inv_freq >= cutoff / 8, cutoff / 16, 0.0)
            )
        )
