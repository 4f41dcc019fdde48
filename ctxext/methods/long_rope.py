"""LongRoPE (arXiv 2402.13753): searched divisors, one per pair."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from ctxext.methods.custom import check_divisors, divided
from ctxext.methods.published_divisors import (
    check_published,
    named_divisors,
    published_divisors,
)
from ctxext.rope import Rope, RopeBase, RopeScaling, check_attention_factor, check_factor


def su_attention_factor(factor: float, window: int) -> float:
    """m = sqrt(1 + ln(factor) / ln(window)), and 1 at factor 1.

    Raises ValueError for a window of a single token, whose logarithm is 0.
    """
    if window < 2:
        raise ValueError(f"a window of {window} token has no attention_factor; give one, such as 1")
    return math.sqrt(1 + math.log(factor) / math.log(window)) if factor > 1 else 1.0


def _numbers(given: tuple[float, ...] | str, base: RopeBase) -> tuple[float, ...]:
    """The divisors, also where a published list is given by its name."""
    return named_divisors(given, base) if isinstance(given, str) else given


@dataclasses.dataclass(frozen=True)
class LongRope(RopeScaling):
    """f'_i = f_i / short_factor_i up to L tokens, f_i / long_factor_i beyond (arXiv 2402.13753).

    A list is given as numbers, or by the name of one that the authors published, which is refused
    for a model of another head_dim, theta or window, and as `long_factor` for another factor;
    `plain` stands for ones. `attention_factor` None is m = sqrt(1 + ln factor / ln L). The first
    `leading_positions` keep plain RoPE with m = 1. Trained with `train.rope_length` "document",
    each document has the list of its own length, as in the mixed windows of LongRoPE2 (arXiv
    2502.20082). Raises ValueError if a list does not have one divisor per pair, highest frequency
    first.
    """

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2402.13753"
    factor: float
    short_factor: tuple[float, ...] | str
    """Divisors up to the window, one per pair, or the name of a published list."""
    long_factor: tuple[float, ...] | str
    """Divisors beyond the window, one per pair, or the name of a published list."""
    attention_factor: float | None = None
    leading_positions: int = 0
    """The first positions, which keep plain RoPE."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        for name in ("short_factor", "long_factor"):
            given = getattr(self, name)
            if isinstance(given, str):
                check_published(name, given)
            else:
                check_divisors(name, given)
        check_attention_factor(self.attention_factor)
        published = published_divisors().get(str(self.long_factor))
        if published is not None and published.factor != self.factor:
            raise ValueError(
                f"the divisors {self.long_factor} were searched for factor {published.factor:g}, "
                f"got factor {self.factor:g}; give {published.factor:g}, or another list"
            )
        if self.leading_positions < 0:
            raise ValueError(
                f"leading_positions must be 0 (none) or more, got {self.leading_positions}"
            )

    def with_numbers(self, base: RopeBase) -> "LongRope":
        """The same scaling of `base`, with numbers in place of the names of published lists.

        Raises ValueError if a list is for another model.
        """
        return dataclasses.replace(
            self,
            short_factor=_numbers(self.short_factor, base),
            long_factor=_numbers(self.long_factor, base),
        )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        window = base.original_max_position_embeddings
        short = divided(base, "short_factor", _numbers(self.short_factor, base))
        long = divided(base, "long_factor", _numbers(self.long_factor, base))
        m = self.attention_factor
        if m is None:
            m = su_attention_factor(self.factor, window)
        leading = (self.leading_positions, base.inv_freq) if self.leading_positions else None
        return Rope(long if seq_len > window else short, m, leading)

    def switch_lengths(self, base: RopeBase) -> tuple[int, ...] | None:
        return (base.original_max_position_embeddings,)


@dataclasses.dataclass(frozen=True)
class DynamicLongRope(RopeScaling):
    """LongRoPE whose divisors grow with the length (code of arXiv 2402.13753).

    They are 1 + (long_factor_i - 1) (l / L - 1) / (factor - 1) at length l. With `clamp` False they
    fall below 1 for l < L, as in the authors' code. m is that of `factor` at every length. Raises
    ValueError for divisors that are below 1 or fall from pair to pair.
    """

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2402.13753"
    factor: float
    long_factor: tuple[float, ...]
    """Divisors at `factor` windows, one per pair."""
    attention_factor: float | None = None
    clamp: bool = True
    """Divisors never fall below 1."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if self.factor == 1:
            raise ValueError(
                "factor must be above 1, such as 8: the divisors grow from L to factor L"
            )
        check_divisors("long_factor", self.long_factor)
        if min(self.long_factor, default=1) < 1:
            raise ValueError(
                "long_factor must be at least 1 for every pair, because the divisors grow from 1 "
                f"to it, got {min(self.long_factor)}"
            )
        if list(self.long_factor) != sorted(self.long_factor):
            pair = int(np.argmax(np.diff(self.long_factor) < 0))
            raise ValueError(
                "long_factor must not fall from pair to pair, as in the paper's search, but "
                f"{self.long_factor[pair]:g} is followed by {self.long_factor[pair + 1]:g}; "
                "LongRope and Custom take any vector"
            )
        check_attention_factor(self.attention_factor)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        window = base.original_max_position_embeddings
        growth = (seq_len / window - 1) / (self.factor - 1)  # 0 at L, 1 at factor L
        if self.clamp:
            growth = max(growth, 0.0)
        divisors = 1 + (np.asarray(self.long_factor) - 1) * growth
        if not (divisors > 0).all():
            raise ValueError(f"at {seq_len} tokens divisors are not positive; set clamp to true")
        m = self.attention_factor
        if m is None:
            m = su_attention_factor(self.factor, window)
        return Rope(divided(base, "long_factor", divisors.tolist()), m)
