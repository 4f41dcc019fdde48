"""The YaRN that PoSE trained with (code of arXiv 2309.10400)."""

import dataclasses
from typing import ClassVar

from ctxext.methods.yarn import check_betas, turns_ramp, yarn_attention_factor
from ctxext.rope import Rope, RopeBase, RopeScaling, check_attention_factor, check_factor


@dataclasses.dataclass(frozen=True)
class RevisedYarn(RopeScaling):
    """f'_i = f_i / (r_i factor + 1 - r_i), m = 0.1 ln(factor) + 1 (code of arXiv 2309.10400).

    YaRN that blends wavelengths instead of frequencies. r is YaRN's ramp, so that only the pairs
    inside it differ from YaRN's. `attention_factor` None is that m.
    """

    aliases: ClassVar[tuple[str, ...]] = ("pose-yarn",)
    paper: ClassVar[str] = "2309.10400"
    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_betas(self.beta_fast, self.beta_slow)
        check_attention_factor(self.attention_factor)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        ramp = turns_ramp(base, self.beta_fast, self.beta_slow, truncate=True)
        m = self.attention_factor
        if m is None:
            m = yarn_attention_factor(self.factor)
        return Rope(base.inv_freq / (ramp * self.factor + 1 - ramp), m)
