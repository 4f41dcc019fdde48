"""Giraffe's two bases (arXiv 2308.10882): frequencies lowered by a power, or cut off."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


def _power_basis(base: RopeBase, factor: float, power: float) -> np.ndarray:
    num_pairs = base.head_dim // 2
    return base.inv_freq / factor * (1 - np.arange(num_pairs) / num_pairs) ** power


@dataclasses.dataclass(frozen=True)
class PowerBasis(RopeScaling):
    """f'_i = (f_i / factor) (1 - i / (d / 2))^power (arXiv 2308.10882).

    The slower a pair rotates, the more it is slowed down.
    """

    paper: ClassVar[str] = "2308.10882"
    factor: float
    power: float = dataclasses.field(metadata={"example": 0.5})
    """The exponent of the slow-down."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not 0 < self.power < math.inf:
            raise ValueError(
                f"power must be positive and finite, such as 0.5, got {self.power}; "
                "0 would be Linear"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(_power_basis(base, self.factor, self.power))


@dataclasses.dataclass(frozen=True)
class TruncatedBasis(RopeScaling):
    """f'_i = f if f >= c, c / 16 if c > f >= c / 8, else 0 (arXiv 2308.10882).

    f = f_i / factor and c = 2 pi / T, where T = truncate_length is the training length in tokens:
    a pair that is kept turns at least once in it. With `power` above 0, f is the power basis.
    """

    paper: ClassVar[str] = "2308.10882"
    factor: float
    truncate_length: int
    """The training length in tokens."""
    power: float = 0.0
    """The exponent of the power basis below it; 0 for none."""

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
        inv_freq = _power_basis(base, self.factor, self.power)
        cutoff = 2 * np.pi / self.truncate_length
        slow = np.where(inv_freq >= cutoff / 8, cutoff / 16, 0.0)
        return Rope(np.where(inv_freq >= cutoff, inv_freq, slow))
