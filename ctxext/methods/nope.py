"""No positions in attention (arXiv 2305.19466), and DroPE's way to get there (arXiv 2512.12167)."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.rope import Rope, RopeBase, RopeScaling


@dataclasses.dataclass(frozen=True)
class NoPE(RopeScaling):
    """f'_i = 0: no pair rotates, and only the causal mask tells positions apart (2305.19466).

    For a model that was trained with RoPE this is DroPE (arXiv 2512.12167): drop, then recalibrate
    at the old length. Without training the model is lost, so that a zero-shot number says little.
    Train it like any other scaling, with `train.seq_len` at the window of pre-training and not
    beyond; then evaluate at any length. It has no factor: an export declares the length that is
    asked for.
    """

    paper: ClassVar[str] = "2512.12167"
    aliases: ClassVar[tuple[str, ...]] = ("drope",)

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(np.zeros(base.head_dim // 2))
