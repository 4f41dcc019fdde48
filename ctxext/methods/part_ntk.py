"""The first NTK-by-parts, as released before the paper (code of arXiv 2309.00071): two ramps, one after the other."""

import dataclasses
from typing import ClassVar

from ctxext.methods.ntk import ntk_theta
from ctxext.methods.yarn import turns_ramp
from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor, inverse_frequencies

BETAS, GAMMAS = (
    (1.25, 0.75),
    (16.0, 2.0),
)  # turns in the window; found by the authors' experiments on Llama


@dataclasses.dataclass(frozen=True)
class PartNTK(RopeScaling):
    """Linear below 0.75 turns in L, NTK from 1.25, plain RoPE from 16, blends between (code of arXiv 2309.00071).

    g = ntk_factor b f_NTK + (1 - ntk_factor b) f / factor, f' = e c f + (1 - e c) g with b and c the two ramps, 1 for
    many turns, and e the `extrapolation_factor`; both factors lie in [0, 1].
    """

    paper: ClassVar[str] = "2309.00071"
    factor: float
    ntk_factor: float = 1.0
    extrapolation_factor: float = 1.0

    def __post_init__(self) -> None:
        check_factor(self.factor)
        for name in ("ntk_factor", "extrapolation_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must lie in 0 .. 1 (1 is the authors'), got {getattr(self, name)}"
                )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        ntk = self.ntk_factor * (1 - turns_ramp(base, *BETAS, truncate=True))
        plain = self.extrapolation_factor * (1 - turns_ramp(base, *GAMMAS, truncate=True))
        slow = inverse_frequencies(base.head_dim, ntk_theta(base, self.factor)) * ntk
        slow += base.inv_freq / self.factor * (1 - ntk)
        return Rope(base.inv_freq * plain + slow * (1 - plain))


@dataclasses.dataclass(frozen=True)
class DynamicPartNTK(RopeScaling):
    """PartNTK with factor l / L at length l > L, plain RoPE up to L (code of arXiv 2309.00071)."""

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2309.00071"

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return PartNTK(max(1.0, seq_len / base.original_max_position_embeddings)).rope(
            base, seq_len
        )
