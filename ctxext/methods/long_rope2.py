"""LongRoPE2 (arXiv 2502.20082): divisors by a formula up to a critical pair, free from it on."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ctxext.methods.custom import check_divisors
from ctxext.methods.long_rope import LongRope
from ctxext.methods.published_divisors import PLAIN
from ctxext.rope import Rope, RopeBase, RopeScaling, check_attention_factor, check_factor

STEP = 0.1
"""By how much the divisors grow from pair to pair in the list that a search starts with."""


def default_critical_pair(base: RopeBase) -> int:
    """c = ceil(d / 2 log_theta(L / 2 pi)) - 1: the last pair that turns more than once in L tokens.

    It is 45 for Llama 2 and 34 for Llama 3. Raises ValueError where theta makes no pair slower
    than the one before it.
    """
    if base.theta <= 1:
        raise ValueError(
            f"the critical pair follows from a rope_theta above 1, got {base.theta:g}; give "
            "critical_pair"
        )
    turns = math.log(base.original_max_position_embeddings / (2 * math.pi)) / math.log(base.theta)
    return max(0, math.ceil(turns * base.head_dim / 2) - 1)


@dataclasses.dataclass(frozen=True)
class LongRope2(RopeScaling):
    """Beyond L tokens f'_i = f_i / lambda_i, lambda_i = lambda_c^(i / c) for i < c (2502.20082).

    Plain RoPE up to L. c is the `critical_pair`; from there on the divisors are free, and the
    paper searches for them. The default is the list that its search starts with: `factor` at pair
    c, and 0.1 more from pair to pair. The default c is the formula of the released code; the
    published search for Llama 3 sets 33, one pair earlier, and its result is `llama3_8b_longrope2`
    of LongRope. m = sqrt(1 + ln factor / ln L) at every length, as in LongRoPE. The paper's
    training is that with `train.rope_length` "document".
    """

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2502.20082"
    factor: float
    critical_pair: int | None = None
    """c, counted from 0; None: the last pair that turns more than once in L tokens."""
    slow_divisors: tuple[float, ...] = ()
    """lambda_i from pair c on; empty: `factor`, and 0.1 more from pair to pair."""
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_divisors("slow_divisors", self.slow_divisors)
        check_attention_factor(self.attention_factor)
        if self.critical_pair is not None and self.critical_pair < 0:
            raise ValueError(f"critical_pair must be 0 or more, got {self.critical_pair}")

    def divisors(self, base: RopeBase) -> np.ndarray:
        """lambda_i beyond the window, float64 [d/2].

        Raises ValueError if the critical pair or the number of divisors does not fit head_dim.
        """
        num_pairs = base.head_dim // 2
        critical = self.critical_pair
        if critical is None:
            critical = min(default_critical_pair(base), num_pairs - 1)
        if critical >= num_pairs:
            raise ValueError(
                f"critical_pair {critical} does not fit head_dim {base.head_dim}; give at most "
                f"{num_pairs - 1}"
            )
        slow = np.asarray(self.slow_divisors, np.float64)
        if not self.slow_divisors:
            slow = self.factor + STEP * np.arange(num_pairs - critical)
        if len(slow) != num_pairs - critical:
            raise ValueError(
                f"slow_divisors: {len(slow)} divisors do not fit head_dim {base.head_dim} and "
                f"critical_pair {critical}; give {num_pairs - critical}"
            )
        fill = slow[0] ** (np.arange(critical) / max(critical, 1))
        return np.concatenate([fill, slow])

    def long_rope(self, base: RopeBase) -> LongRope:
        """LongRoPE with the same frequencies over `base`."""
        return LongRope(
            self.factor,
            PLAIN,
            tuple(self.divisors(base).tolist()),
            attention_factor=self.attention_factor,
        )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return self.long_rope(base).rope(base, seq_len)

    def switch_lengths(self, base: RopeBase) -> tuple[int, ...] | None:
        return (base.original_max_position_embeddings,)
