"""p-RoPE (arXiv 2410.06205): the slowest pairs stand still."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


@dataclasses.dataclass(frozen=True)
class PRope(RopeScaling):
    """f'_i = f_i / factor for the first floor(p d / 2) pairs, 0 for the others; p = partial_rotary_factor (2410.06205).

    `factor` 1 is the paper's. The exponent stays -2i/d, of the whole head: nothing is spread out anew.
    """

    aliases: ClassVar[tuple[str, ...]] = ("proportional",)
    paper: ClassVar[str] = "2410.06205"
    factor: float
    partial_rotary_factor: float

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not 0 <= self.partial_rotary_factor <= 1:
            raise ValueError(
                f"partial_rotary_factor must lie in 0 .. 1, such as 0.75, "
                f"got {self.partial_rotary_factor}"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        turning = int(self.partial_rotary_factor * base.head_dim // 2)
        return Rope(
            np.where(np.arange(base.head_dim // 2) < turning, base.inv_freq / self.factor, 0.0)
        )
