"""Resonance RoPE (arXiv 2403.00071): wavelengths of whole tokens."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeWrapper


@dataclasses.dataclass(frozen=True)
class Resonance(RopeWrapper):
    """f'_i = 2 pi / lambda_i, lambda_i the wavelength 2 pi / f_i of `inner` in whole tokens.

    A pair then meets at every turn the very angles that it met in its first one (arXiv 2403.00071).
    lambda_i is rounded to the nearest number, halves to the even one, and is at least 1; a pair
    that does not rotate stays so. The paper uses it on plain RoPE and after YaRN, whose m is kept.
    Fast pairs change most: pair 0 from 2 pi to 6 tokens.
    """

    paper: ClassVar[str] = "2403.00071"

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        rope = self.inner.rope(base, seq_len)
        with np.errstate(divide="ignore"):
            wavelengths = np.maximum(np.rint(2 * np.pi / rope.inv_freq), 1)
        return dataclasses.replace(rope, inv_freq=2 * np.pi / wavelengths)
