"""Given frequencies: learned, searched, or read from a checkpoint."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling


@dataclasses.dataclass(frozen=True)
class Custom(RopeScaling):
    """f'_i = f_i / divisors_i, m = attention_factor: any static spectrum, as LongRoPE writes one (arXiv 2402.13753).

    `divisors`: one per pair, highest frequency first. Raises ValueError if their number is not head_dim / 2.
    """

    paper: ClassVar[str] = "2402.13753"
    divisors: tuple[float, ...]
    attention_factor: float

    def __post_init__(self) -> None:
        if not all(0 < divisor < math.inf for divisor in self.divisors):
            raise ValueError("divisors must be positive and finite; 1e12 stands for a frequency of zero")

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        if len(self.divisors) != base.head_dim // 2:
            raise ValueError(f"{len(self.divisors)} divisors do not fit head_dim {base.head_dim}; "
                             f"give {base.head_dim // 2}")  # fmt: skip
        return Rope(base.inv_freq / np.asarray(self.divisors, np.float64), self.attention_factor)
