"""Adjusted base frequency (arXiv 2309.16039)."""

import dataclasses
import math
from typing import ClassVar

from ctxext.rope import Rope, RopeBase, RopeScaling, inverse_frequencies


@dataclasses.dataclass(frozen=True)
class ABF(RopeScaling):
    """f'_i = rope_theta^(-2i/d): another base, and training that adapts to it (2309.16039)."""

    paper: ClassVar[str] = "2309.16039"
    rope_theta: float
    """The new base of the frequencies."""

    def __post_init__(self) -> None:
        if not 1 < self.rope_theta < math.inf:
            raise ValueError(
                f"rope_theta must be a finite number above 1, such as 500000, got {self.rope_theta}"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(inverse_frequencies(base.head_dim, self.rope_theta))
