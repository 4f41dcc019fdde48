"""p-RoPE (arXiv 2410.06205): the slowest pairs do not rotate."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


@dataclasses.dataclass(frozen=True)
class PRope(RopeScaling):
    """f'_i = f_i / factor for the first floor(p d / 2) pairs, 0 for the others (arXiv 2410.06205).

    p = `partial_rotary_factor`. `factor` 1 is the paper's. The exponents stay those of the whole
    head, -2i/d.
    """

    aliases: ClassVar[tuple[str, ...]] = ("proportional",)
    paper: ClassVar[str] = "2410.06205"
    factor: float
    partial_rotary_factor: float = dataclasses.field(metadata={"example": 0.75})
    """The fraction of pairs that rotate."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not 0 <= self.partial_rotary_factor <= 1:
            raise ValueError(
                f"partial_rotary_factor must be in 0 .. 1, such as 0.75, "
                f"got {self.partial_rotary_factor}"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        num_rotated = int(self.partial_rotary_factor * base.head_dim // 2)
        is_rotated = np.arange(base.head_dim // 2) < num_rotated
        return Rope(np.where(is_rotated, base.inv_freq / self.factor, 0.0))
