"""The first NTK-by-parts, released before the paper (code of arXiv 2309.00071), with two ramps."""

import dataclasses
from typing import ClassVar

from ctxext.methods.ntk import ntk_theta
from ctxext.methods.yarn import turns_ramp
from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor, inverse_frequencies

# Ends of the two ramps in turns per window, from the authors' experiments on Llama.
BETAS = (1.25, 0.75)
GAMMAS = (16.0, 2.0)


@dataclasses.dataclass(frozen=True)
class PartNTK(RopeScaling):
    """Linear below 0.75 turns in L, NTK from 1.25, plain RoPE from 16 (code of arXiv 2309.00071).

    In between it blends: g = ntk_factor b f_NTK + (1 - ntk_factor b) f / factor and
    f' = e c f + (1 - e c) g, with the two ramps b and c, 1 for many turns, and e the
    `extrapolation_factor`. Both factors are in [0, 1].
    """

    paper: ClassVar[str] = "2309.00071"
    factor: float
    ntk_factor: float = 1.0
    """How much of the NTK frequencies is blended in, 0 to 1."""
    extrapolation_factor: float = 1.0
    """How much of the plain frequencies is kept for fast pairs, 0 to 1."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        for name in ("ntk_factor", "extrapolation_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} must be in 0 .. 1 (1 is the authors'), got {getattr(self, name)}"
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
