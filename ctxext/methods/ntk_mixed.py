"""NTK-RoPE-mixed (kexue.fm/archives/9708): all frequencies fall, those of fast pairs less."""

import dataclasses
import math

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor

LARGEST_B = 16
"""With more, hardly any pair but the slowest would change."""


@dataclasses.dataclass(frozen=True)
class NTKMixed(RopeScaling):
    """f'_i = f_i exp(-a (i + 1)^b), a = ln(factor) / (d / 2)^b (kexue.fm 9708, bojone/rerope).

    The slowest pair is divided by `factor`; b = 1 is nearly NTK, and b = 0 divides all pairs as
    Linear does. The authors' settings are factor 12 and b 0.75. Their code also multiplies the
    query at position p by max(1, ln(p + 1) / ln L), which is the attention method LogTemperature.
    """

    factor: float
    mixed_b: float = 0.75
    """b, from 0 (all pairs alike) up; 1 is nearly NTK."""
    mixed_a: float | None = None
    """a; None: so that the slowest pair is divided by `factor`."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not 0 <= self.mixed_b <= LARGEST_B:
            raise ValueError(
                f"mixed_b must be in 0 .. {LARGEST_B}, such as 0.75, got {self.mixed_b}"
            )
        if self.mixed_a is not None and not 0 <= self.mixed_a < math.inf:
            raise ValueError(
                f"mixed_a must be a finite number from 0 up, or none to follow from factor, "
                f"got {self.mixed_a}"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        num_pairs = base.head_dim // 2
        a = self.mixed_a
        if a is None:
            a = math.log(self.factor) / num_pairs**self.mixed_b
        pairs = np.arange(1, num_pairs + 1, dtype=np.float64)
        return Rope(base.inv_freq * np.exp(-a * pairs**self.mixed_b))
