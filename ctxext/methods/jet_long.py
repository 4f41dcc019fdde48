"""Jet-Long and its frequency variant (arXiv 2607.07740)."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from ctxext.attention.maps import Grouped
from ctxext.attention.pieces import Attention, Band, Piece, Stretch
from ctxext.methods.yarn import turns_ramp
from ctxext.rope import Rope, RopeBase


@dataclasses.dataclass(frozen=True)
class JetLong(Attention):
    """Plain RoPE up to distance w0, and p // G beyond it, with G = ceil(l / w) (arXiv 2607.07740).

    l is the length of the text: one of up to `window` w tokens is read as by the base. There is no
    shift, unlike in Self-Extend: at w0 the distance falls to about w0 / G. In the released code a
    prompt is read with the G of its end and new tokens with that of the length so far: the
    semantics `incremental`. It needs no training.
    """

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2607.07740"
    window: int = dataclasses.field(metadata={"example": 4096})
    """w, the window of the base; 32768 in the released code."""
    near_window: int = dataclasses.field(metadata={"example": 256})
    """w0, the largest distance that is kept exactly; 2048 in the released code."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.near_window < 0:
            raise ValueError(
                f"window must be at least 1 and near_window at least 0, got {self.window} and "
                f"{self.near_window}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        grouped = Grouped(-(-seq_len // self.window))
        reach = self.near_window + 1
        return Piece(Band(0, reach)), Piece(Band(reach), grouped, grouped)


@dataclasses.dataclass(frozen=True)
class LengthFactor:
    """s = max(1, (l - w0) / (w - w0)), by which distances beyond w0 have to shrink to fit in w."""

    window: int
    near_window: int

    def __call__(self, seq_len: Any) -> Any:
        factor = (seq_len - self.near_window) / (self.window - self.near_window)
        return factor.clip(min=1) if hasattr(factor, "clip") else max(factor, 1.0)


@dataclasses.dataclass(frozen=True)
class _Temperature:
    """0.1 ln s + 1, the same for every query."""

    factor: LengthFactor
    seq_len: Any

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        return 0.1 * xp.log(xp.asarray(self.factor(self.seq_len))) + 1 + xp.zeros(positions.shape)


@dataclasses.dataclass(frozen=True)
class JetLongFreq(Attention):
    """Plain RoPE up to distance w0; beyond it slow pairs turn more slowly (arXiv 2607.07740).

    The frequency variant of the released code: distance D > w0 turns pair i by
    w0 f_i + (D - w0) f'_i, f'_i = f_i (1 - r_i (1 - 1 / s)), s = (l - w0) / (w - w0), with YaRN's
    ramp r over a window of w, whose upper end is clamped to the last pair, not to d - 1. A pair
    with r = 1 turns at the end of the text as far as in the window. Logits are multiplied by
    0.1 ln s + 1 once, where YaRN does it twice, those of near keys too. A text of up to `window`
    tokens is read as by the base, and a new token by the length so far. It needs no training.
    """

    depends_on_length: ClassVar[bool] = True
    paper: ClassVar[str] = "2607.07740"
    window: int = dataclasses.field(metadata={"example": 4096})
    """w, the window of the base; 32768 in the released code."""
    near_window: int = dataclasses.field(metadata={"example": 256})
    """w0, the largest distance that is kept exactly; 2048 in the released code."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.near_window < self.window:
            raise ValueError(
                f"need 0 <= near_window < window, got {self.near_window} and {self.window}"
            )
        if not 0 < self.beta_slow <= self.beta_fast:
            raise ValueError(
                f"need 0 < beta_slow <= beta_fast, got {self.beta_slow} and {self.beta_fast}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        scale = _Temperature(self._factor, seq_len)
        reach = self.near_window + 1
        near = Piece(Band(0, reach), query_scale=scale)
        return near, Piece(Band(reach), query_scale=scale, stretched=True)

    def stretch(self, rope: Rope, base: RopeBase, seq_len: int) -> Stretch:
        of_window = dataclasses.replace(base, original_max_position_embeddings=self.window)
        last = base.head_dim // 2 - 1
        ramp = turns_ramp(of_window, self.beta_fast, self.beta_slow, truncate=True, last=last)
        shrunk = 1 - ramp * (1 - 1 / self._factor(seq_len))
        return Stretch(self.near_window, np.asarray(rope.inv_freq * shrunk))

    @property
    def _factor(self) -> LengthFactor:
        return LengthFactor(self.window, self.near_window)
