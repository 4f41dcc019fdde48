"""NTK-aware scaling: one change of base, static or following the length."""

import dataclasses
from typing import ClassVar

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor, inverse_frequencies


def ntk_theta(base: RopeBase, alpha: float) -> float:
    """theta alpha^(d / (d - 2)): the highest frequency stays, the lowest is divided by alpha.

    Raises ValueError for a head of a single pair, whose frequency is both.
    """
    if base.head_dim == 2:
        raise ValueError("NTK needs a head_dim of at least 4, got 2; Linear takes any")
    return base.theta * alpha ** (base.head_dim / (base.head_dim - 2))


@dataclasses.dataclass(frozen=True)
class NTK(RopeScaling):
    """f'_i = theta'^(-2i/d) with theta' = theta factor^(d / (d - 2)) (arXiv 2309.00071, 3.1)."""

    aliases: ClassVar[tuple[str, ...]] = ("ntk-aware",)
    paper: ClassVar[str] = "2309.00071"
    factor: float

    def __post_init__(self) -> None:
        check_factor(self.factor)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(inverse_frequencies(base.head_dim, ntk_theta(base, self.factor)))


@dataclasses.dataclass(frozen=True)
class DynamicNTK(RopeScaling):
    """NTK with alpha = factor l / L - (factor - 1) at length l > L (arXiv 2309.00071, 3.3).

    Plain RoPE up to L. factor 1 is the pure form, alpha = l / L. A pure function of l: no state is
    kept from longer calls.
    """

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2309.00071"
    factor: float

    def __post_init__(self) -> None:
        check_factor(self.factor)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        length = max(seq_len, base.original_max_position_embeddings)
        alpha = self.factor * length / base.original_max_position_embeddings - (self.factor - 1)
        return Rope(inverse_frequencies(base.head_dim, ntk_theta(base, alpha)))
