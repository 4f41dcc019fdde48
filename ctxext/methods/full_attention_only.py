"""Scaling of layers with full attention only, as Gemma 3 and Olmo 3 do (arXiv 2503.19786)."""

import dataclasses
from typing import ClassVar

from ctxext.rope import Rope, RopeBase, RopeWrapper


@dataclasses.dataclass(frozen=True)
class FullAttentionOnly(RopeWrapper):
    """The frequencies of `inner` in layers that see all tokens; layers with a window are left out.

    A window never shows distances beyond those of pre-training, so that layers with one need no
    scaling: they rotate by f_i = theta^(-2i/d) with m = 1, whatever scaling the checkpoint carries,
    with a theta of their own where the model has one. Gemma 3 does so with linear scaling (arXiv
    2503.19786) and Olmo 3 with YaRN. In a model without windows it is `inner` itself; a model whose
    layers all have a window refuses it. Give it outermost: a scaling around it changes the layers
    with full attention alone.
    """

    paper: ClassVar[str] = "2503.19786"

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        rope = self.inner.rope(base, seq_len)
        return dataclasses.replace(rope, sliding=Rope(base.of_sliding_layers.inv_freq))
