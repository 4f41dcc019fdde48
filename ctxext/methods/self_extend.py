"""Self-Extend (arXiv 2401.01325)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.maps import Grouped
from ctxext.attention.pieces import Attention, Band, Piece


@dataclasses.dataclass(frozen=True)
class SelfExtend(Attention):
    """Plain RoPE within `neighbor_window` W tokens, grouped positions p // G beyond (2401.01325).

    Grouped queries are at p // G + W - W // G, so that distances continue at W; p counts from the
    beginning of the document, in packed rows too. One softmax over both pieces. It needs no
    training and reaches about (L - W) G + W tokens.
    """

    paper: ClassVar[str] = "2401.01325"
    group_size: int = dataclasses.field(metadata={"example": 4})
    """G, neighbouring positions that become one beyond the neighbour window."""
    neighbor_window: int = dataclasses.field(metadata={"example": 1024})
    """W, tokens that keep their exact distance."""

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.neighbor_window < 1:
            raise ValueError(
                f"group_size and neighbor_window must be at least 1, got "
                f"{self.group_size} and {self.neighbor_window}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        size = self.group_size
        window = self.neighbor_window
        far = Piece(Band(window), Grouped(size, window - window // size), Grouped(size))
        return Piece(Band(0, window)), far
