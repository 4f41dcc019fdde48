"""YaRN (arXiv 2309.00071), static or following the length."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_attention_factor, check_factor


def turns_ramp(
    base: RopeBase,
    beta_fast: float,
    beta_slow: float,
    *,
    truncate: bool,
    last: int | None = None,
) -> np.ndarray:
    """0 for pairs of more than beta_fast turns in the window, 1 for fewer than beta_slow turns.

    Linear in between, float64 [d/2]. Pair d ln(L / (2 pi n)) / (2 ln theta) makes n turns in L
    tokens. truncate: round the ends of the ramp outward to whole pairs. last: the pair at which the
    ramp ends at the latest, by default d - 1 as in the authors' code.

    Raises ValueError where theta makes no pair slower than the one before it.
    """
    if base.theta <= 1:
        raise ValueError(
            f"the ramp between fast and slow pairs needs a rope_theta above 1, got {base.theta:g}; "
            "Linear takes any"
        )

    def pair(turns: float) -> float:
        window = base.original_max_position_embeddings
        return base.head_dim * math.log(window / (2 * math.pi * turns)) / (2 * math.log(base.theta))

    low = pair(beta_fast)
    high = pair(beta_slow)
    if truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    # The authors clamp at d - 1, not at d / 2 - 1.
    high = min(high, base.head_dim - 1 if last is None else last)
    if low == high:
        high += 0.001
    return np.clip((np.arange(base.head_dim // 2) - low) / (high - low), 0, 1)


def yarn_attention_factor(factor: float) -> float:
    """m = 0.1 ln(factor) + 1, on cos and on sin."""
    return 0.1 * math.log(factor) + 1


SMALLEST_BETA = 1e-12
"""Turns in the window; the logarithm of less leads to no pair."""


def check_betas(beta_fast: float, beta_slow: float) -> None:
    """Raise ValueError unless the ramp runs from more turns in the window to fewer."""
    if not math.inf > beta_fast >= beta_slow >= SMALLEST_BETA:
        raise ValueError(
            f"need beta_fast >= beta_slow > 0, such as 32 and 1, got {beta_fast} and {beta_slow}"
        )


@dataclasses.dataclass(frozen=True)
class Yarn(RopeScaling):
    """f'_i = (1 - r_i) f_i + r_i f_i / factor, m = 0.1 ln(factor) + 1 (arXiv 2309.00071).

    r is the ramp over turns in L; `truncate` rounds its ends outward. `attention_factor` None is
    that m; logits scale by its square. `extrapolation_factor` e in [0, 1] keeps only a part,
    e (1 - r_i), of the plain frequencies.
    """

    paper: ClassVar[str] = "2309.00071"
    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    extrapolation_factor: float = 1.0
    """How much of the plain frequencies is kept for fast pairs, 0 to 1."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_betas(self.beta_fast, self.beta_slow)
        check_attention_factor(self.attention_factor)
        if not 0 <= self.extrapolation_factor <= 1:
            raise ValueError(
                f"extrapolation_factor must be in 0 .. 1 (1 is the paper's), "
                f"got {self.extrapolation_factor}"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        ramp = turns_ramp(base, self.beta_fast, self.beta_slow, truncate=self.truncate)
        if self.extrapolation_factor != 1:
            ramp = 1 - self.extrapolation_factor * (1 - ramp)
        inv_freq = base.inv_freq * (1 - ramp) + base.inv_freq / self.factor * ramp
        m = self.attention_factor
        if m is None:
            m = yarn_attention_factor(self.factor)
        return Rope(inv_freq, m)


@dataclasses.dataclass(frozen=True)
class DynamicYarn(RopeScaling):
    """YaRN with factor l / L at length l > factor L, and up to there with `factor` (2309.00071).

    `factor` is that of the fine-tuning; 1 is the pure form, plain RoPE up to L. `finetuned` False
    is plain RoPE up to factor L and then jumps to l / L, as the authors' code does. A pure function
    of l: no state is kept from longer calls.
    """

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2309.00071"
    factor: float
    finetuned: bool = True
    """Keep `factor` up to factor windows, as for a model that was trained with it."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_betas(self.beta_fast, self.beta_slow)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        factor = seq_len / base.original_max_position_embeddings
        if factor <= self.factor:
            factor = self.factor if self.finetuned else 1.0
        return Yarn(factor, self.beta_fast, self.beta_slow).rope(base, seq_len)
