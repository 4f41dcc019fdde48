"""Position Interpolation (arXiv 2306.15595), static or following the length."""

import dataclasses
from typing import ClassVar

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


@dataclasses.dataclass(frozen=True)
class Linear(RopeScaling):
    """f'_i = f_i / factor, the same as positions p / factor (arXiv 2306.15595)."""

    aliases: ClassVar[tuple[str, ...]] = ("pi", "position-interpolation")
    paper: ClassVar[str] = "2306.15595"
    factor: float

    def __post_init__(self) -> None:
        check_factor(self.factor)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq / self.factor)


@dataclasses.dataclass(frozen=True)
class DynamicLinear(RopeScaling):
    """Linear with factor l / L at length l > L, plain RoPE up to L (arXiv 2309.00071, 3.3)."""

    aliases: ClassVar[tuple[str, ...]] = ("dynamic-pi",)
    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2309.00071"

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq / max(1.0, seq_len / base.original_max_position_embeddings))
