"""NTK-by-parts (arXiv 2309.00071, 3.2): YaRN's frequencies without its temperature."""

import dataclasses
from typing import ClassVar

from ctxext.methods.yarn import Yarn, check_betas
from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


@dataclasses.dataclass(frozen=True)
class NTKByParts(RopeScaling):
    """f'_i = (1 - r_i) f_i + r_i f_i / factor, m = 1 (arXiv 2309.00071, 3.2).

    r is the ramp over turns in L, linear in the pair as in the authors' code, while the paper has
    it linear in turns.
    """

    paper: ClassVar[str] = "2309.00071"
    factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        check_factor(self.factor)
        check_betas(self.beta_fast, self.beta_slow)

    @property
    def yarn(self) -> Yarn:
        """YaRN with the same frequencies."""
        return Yarn(
            self.factor,
            self.beta_fast,
            self.beta_slow,
            attention_factor=1.0,
            truncate=self.truncate,
        )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return self.yarn.rope(base, seq_len)
