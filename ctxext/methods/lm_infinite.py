"""LM-Infinite (arXiv 2308.16137)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.maps import At
from ctxext.attention.pieces import Attention, Band, Mask, Piece


@dataclasses.dataclass(frozen=True)
class First(Mask):
    """The first `count` tokens of the document, each for queries at least `low` tokens later."""

    count: int
    low: int

    def visible(self, query: Any, key: Any) -> Any:
        return (query - key >= self.low) & (key < self.count)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        any_visible = query[-1] - key[0] >= self.low and key[0] < self.count
        all_visible = query[0] - key[-1] >= self.low and key[-1] < self.count
        return any_visible, all_visible


@dataclasses.dataclass(frozen=True)
class LMInfinite(Attention):
    """The last `window` tokens and the first `num_global`, at distances of at most `window`.

    A pair is rotated at distance min(i - j, window). This keeps a model fluent at any length but
    does not make it read farther: what is neither near nor first is not seen (arXiv 2308.16137).
    It needs no training. In packed rows each document has its own first tokens.
    """

    paper: ClassVar[str] = "2308.16137"
    aliases: ClassVar[tuple[str, ...]] = ("lambda-mask",)
    window: int = dataclasses.field(metadata={"example": 1024})
    """Tokens that are visible at their own distance."""
    num_global: int = 10
    """First tokens of the document that stay visible."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.num_global < 0:
            raise ValueError(
                f"window must be at least 1 and num_global at least 0, got {self.window} and "
                f"{self.num_global}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        near = Piece(Band(0, self.window))
        if not self.num_global:
            return (near,)
        return near, Piece(First(self.num_global, self.window), At(self.window), At(0))
