"""YaRN (arXiv 2309.00071)."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


def turns_ramp(base: RopeBase, beta_fast: float, beta_slow: float, *, truncate: bool) -> np.ndarray:
    """0 for pairs that turn more than beta_fast times in the window, 1 for fewer than beta_slow, linear between.

    Pair d(n) = d ln(L / (2 pi n)) / (2 ln theta) makes n turns in L tokens; float64 [d/2].
    """

    def pair(turns: float) -> float:
        window = base.original_max_position_embeddings
        return base.head_dim * math.log(window / (2 * math.pi * turns)) / (2 * math.log(base.theta))

    low, high = pair(beta_fast), pair(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, base.head_dim - 1)  # the authors clamp at d - 1, not at d / 2 - 1
    if low == high:
        high += 0.001
    return np.clip((np.arange(base.head_dim // 2) - low) / (high - low), 0, 1)


@dataclasses.dataclass(frozen=True)
class Yarn(RopeScaling):
    """f'_i = (1 - r_i) f_i + r_i f_i / factor with r the ramp over turns in L, m = 0.1 ln(factor) + 1 (2309.00071).

    `attention_factor` None is that m; logits scale by its square. `truncate` rounds the ends of the ramp outward.
    """

    paper: ClassVar[str] = "2309.00071"
    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not self.beta_fast >= self.beta_slow > 0:
            raise ValueError(f"need beta_fast >= beta_slow > 0, got {self.beta_fast} and {self.beta_slow}")
        if self.attention_factor is not None and not 0 < self.attention_factor < math.inf:
            raise ValueError(f"attention_factor must be positive, got {self.attention_factor}")

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        ramp = turns_ramp(base, self.beta_fast, self.beta_slow, truncate=self.truncate)
        inv_freq = base.inv_freq * (1 - ramp) + base.inv_freq / self.factor * ramp
        default = 0.1 * math.log(self.factor) + 1
        return Rope(inv_freq, default if self.attention_factor is None else self.attention_factor)
