"""STRING, shifted rotary positions (arXiv 2410.18745)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.maps import Shifted
from ctxext.attention.pieces import Attention, Band, Piece


@dataclasses.dataclass(frozen=True)
class Constant:
    """The same multiplier for every query."""

    value: float

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        return xp.full(positions.shape, self.value)


@dataclasses.dataclass(frozen=True)
class String(Attention):
    """Frequent distances in place of rare ones: D up to S, then D - S + W (arXiv 2410.18745).

    The largest distance of a text of l tokens is l - 1 - S + W. It is for use inside the trained
    window, whose largest distances are seldom trained, and needs no training. The prefill of the
    released code has the key at D = S in both parts; here it is in the far one only, as in the
    decoding of that code. The released code also multiplies its tables by 0.1 ln 2 + 1 at any
    length: `attention_factor`.
    """

    paper: ClassVar[str] = "2410.18745"
    shifted_offset: int = dataclasses.field(metadata={"example": 1024})
    """S, tokens that keep their exact distance; a third of the window in the released code."""
    local_value: int = dataclasses.field(metadata={"example": 128})
    """W, the distance of the first token beyond; 128 in the released code."""
    attention_factor: float = 1.0
    """m, the factor on queries and keys; 1.0693 in the released code."""

    def __post_init__(self) -> None:
        if not 0 <= self.local_value <= self.shifted_offset or self.shifted_offset < 1:
            raise ValueError(
                "need 0 <= local_value <= shifted_offset and shifted_offset at least 1, got "
                f"{self.local_value} and {self.shifted_offset}"
            )
        if not 0 < self.attention_factor < float("inf"):
            raise ValueError(
                "attention_factor must be positive and finite (1 changes nothing), got "
                f"{self.attention_factor}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        scale = None
        if self.attention_factor != 1:
            scale = Constant(self.attention_factor**2)
        shift = Shifted(self.local_value - self.shifted_offset)
        near = Piece(Band(0, self.shifted_offset), query_scale=scale)
        far = Piece(Band(self.shifted_offset), shift, query_scale=scale)
        return near, far
