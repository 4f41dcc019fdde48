"""Shifted sparse attention of LongLoRA (arXiv 2309.12307)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.masks import Chunks
from ctxext.attention.pieces import Attention, Causal, Heads, Mask, Piece


@dataclasses.dataclass(frozen=True)
class S2Attn(Attention):
    """Causal attention in groups of G tokens, shifted by G // 2 for half of the heads (2309.12307).

    It makes training at a new length cheap. A run that trains with it evaluates, exports and
    generates with full attention, as the paper does. The released code has G = T / 4 for rows of T
    tokens. As in its file for flash attention, the shifted groups at the two ends of a text are
    shorter; its other file joins them to one: `S2AttnAsReleased`.
    """

    paper: ClassVar[str] = "2309.12307"
    group_size: int = dataclasses.field(metadata={"example": 1024})
    """G, tokens of a group."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size must be at least 2, got {self.group_size}")

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        size = self.group_size
        shifted = Chunks(size, 0, 1, offset=size - size // 2)
        return (
            Piece(Chunks(size, 0, 1), heads=Heads(0, 0.5)),
            Piece(shifted, heads=Heads(0.5, 1)),
        )

    @property
    def after_training(self) -> Attention:
        return Causal()


@dataclasses.dataclass(frozen=True)
class _WrappedGroups(Mask):
    """Causal groups of a text of `seq_len` tokens after it was rolled back by half a group.

    Token i is at (i - size / 2) mod seq_len, so that the last group ends with the first tokens of
    the text, which see its last ones. Beyond `seq_len`, tokens see themselves alone.
    """

    causal: ClassVar[bool] = False
    size: int
    seq_len: int

    def visible(self, query: Any, key: Any) -> Any:
        rolled_query = (query - self.size // 2) % self.seq_len
        rolled_key = (key - self.size // 2) % self.seq_len
        same_group = rolled_query // self.size == rolled_key // self.size
        inside = (query < self.seq_len) & (key < self.seq_len)
        return (inside & same_group & (rolled_key <= rolled_query)) | (query == key)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        return True, False


@dataclasses.dataclass(frozen=True)
class S2AttnAsReleased(Attention):
    """S2-Attn with its leak: the first G / 2 tokens see the last ones in half of the heads.

    As in the file of LongLoRA (arXiv 2309.12307) without flash attention, which rolls a text of
    `row_length` T tokens round. It is for repeating such a training, with the kernel "dense" and
    rows of one document of T tokens; a model trained by it has learned from the future. The run
    evaluates with full attention. Raises ValueError for an odd G, for which that file moves outputs
    by one token.
    """

    paper: ClassVar[str] = "2309.12307"
    row_length: int = dataclasses.field(metadata={"example": 4096})
    """T, tokens of a row."""
    group_size: int = dataclasses.field(metadata={"example": 1024})
    """G, tokens of a group; T / 4 in the released code."""

    def __post_init__(self) -> None:
        if self.group_size < 2 or self.group_size % 2 or self.row_length % self.group_size:
            raise ValueError(
                "group_size must be even and at least 2, and row_length a multiple of it, got "
                f"{self.group_size} and {self.row_length}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        return (
            Piece(Chunks(self.group_size, 0, 1), heads=Heads(0, 0.5)),
            Piece(_WrappedGroups(self.group_size, self.row_length), heads=Heads(0.5, 1)),
        )

    @property
    def after_training(self) -> Attention:
        return Causal()
