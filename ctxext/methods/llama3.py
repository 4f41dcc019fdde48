"""The frequency scaling of Llama 3.1 (arXiv 2407.21783)."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling, check_factor


@dataclasses.dataclass(frozen=True)
class Llama3(RopeScaling):
    """f for wavelengths under L / high, f / factor over L / low, blended between (2407.21783).

    The blend is linear in turns per window: f' = (1 - u) f / factor + u f with
    u = (L / wavelength - low) / (high - low). low, high = `low_freq_factor`, `high_freq_factor`.
    """

    paper: ClassVar[str] = "2407.21783"
    factor: float
    low_freq_factor: float = 1.0
    """Pairs with fewer turns per window are fully interpolated."""
    high_freq_factor: float = 4.0
    """Pairs with more turns per window keep their frequency."""

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not self.high_freq_factor > self.low_freq_factor > 0:
            raise ValueError(
                f"need high_freq_factor > low_freq_factor > 0, got "
                f"{self.high_freq_factor} and {self.low_freq_factor}"
            )

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        turns = base.original_max_position_embeddings * base.inv_freq / (2 * np.pi)
        blend_width = self.high_freq_factor - self.low_freq_factor
        keep = np.clip((turns - self.low_freq_factor) / blend_width, 0, 1)
        return Rope(keep * base.inv_freq + (1 - keep) * base.inv_freq / self.factor)
