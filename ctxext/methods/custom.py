"""Any fixed frequencies: learned, searched, or read from a checkpoint."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_attention_factor

SMALLEST_DIVISOR = 1e-12
"""Frequencies over smaller ones may overflow where they are used."""


def check_divisors(name: str, divisors: Sequence[float]) -> None:
    """Raise ValueError unless all are positive, at least `SMALLEST_DIVISOR`, and finite."""
    if not all(SMALLEST_DIVISOR <= divisor < math.inf for divisor in divisors):
        raise ValueError(
            f"{name} must be positive and finite; 1e12 stands for a frequency of zero, and "
            f"{SMALLEST_DIVISOR:g} is the smallest divisor"
        )


def divided(base: RopeBase, name: str, divisors: Sequence[float]) -> np.ndarray:
    """f_i / divisors_i, float64 [d/2]. Raises ValueError if their number is not head_dim / 2."""
    if len(divisors) != base.head_dim // 2:
        raise ValueError(
            f"{name}: {len(divisors)} divisors do not fit head_dim {base.head_dim}; "
            f"give {base.head_dim // 2}"
        )
    return base.inv_freq / np.asarray(divisors, np.float64)


@dataclasses.dataclass(frozen=True)
class Custom(RopeScaling):
    """f'_i = f_i / divisors_i, m = attention_factor: any static spectrum (arXiv 2402.13753).

    `divisors`: one per pair, highest frequency first. Raises ValueError if they are not
    head_dim / 2.
    """

    paper: ClassVar[str] = "2402.13753"
    divisors: tuple[float, ...]
    """One divisor per pair, highest frequency first."""
    attention_factor: float
    """m, the factor on queries and keys."""

    def __post_init__(self) -> None:
        check_divisors("divisors", self.divisors)
        check_attention_factor(self.attention_factor)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(divided(base, "divisors", self.divisors), self.attention_factor)
