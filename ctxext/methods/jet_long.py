"""Jet-Long (arXiv 2607.07740)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.maps import Grouped
from ctxext.attention.pieces import Attention, Band, Piece


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
