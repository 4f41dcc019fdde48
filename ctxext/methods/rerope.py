"""ReRoPE and leaky ReRoPE (kexue.fm/archives/9708)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.maps import At, Divided, LogLength
from ctxext.attention.pieces import Attention, Band, Piece


def log_length(training_length: int | None) -> LogLength | None:
    """The scale of queries over this training length in tokens; None: none."""
    return None if training_length is None else LogLength(training_length)


def check_window(window: int) -> None:
    """Raise ValueError for a window without a token."""
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")


@dataclasses.dataclass(frozen=True)
class Rerope(Attention):
    """Plain RoPE up to distance `window` w, and the distance w beyond it (kexue.fm/archives/9708).

    A pair is rotated at distance min(D, w). It needs no training; every distance is one of
    pre-training. The released code multiplies queries by max(1, ln(p + 1) / ln L) as well:
    `training_length`.
    """

    paper: ClassVar[str] = ""
    window: int = dataclasses.field(metadata={"example": 1024})
    """w, tokens that keep their exact distance."""
    training_length: int | None = None
    """L of the scale of the queries in the released code, tokens; None: none."""

    def __post_init__(self) -> None:
        check_window(self.window)
        log_length(self.training_length)

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        scale = log_length(self.training_length)
        near = Piece(Band(0, self.window), query_scale=scale)
        far = Piece(Band(self.window), At(self.window), At(0), query_scale=scale)
        return near, far


@dataclasses.dataclass(frozen=True)
class LeakyRerope(Attention):
    """Plain RoPE up to distance `window` w, and w + (D - w) / k beyond it (kexue.fm/archives/9708).

    Far queries are at (p + w (k - 1)) / k and far keys at p / k, which may be fractions. k = 1 is
    plain RoPE, and a large k is ReRoPE. It needs no training. `training_length` as for ReRoPE.
    """

    paper: ClassVar[str] = ""
    window: int = dataclasses.field(metadata={"example": 1024})
    """w, tokens that keep their exact distance."""
    compression: int = dataclasses.field(metadata={"example": 8})
    """k, by which distances grow more slowly beyond the window."""
    training_length: int | None = None
    """L of the scale of the queries in the released code, tokens; None: none."""

    def __post_init__(self) -> None:
        check_window(self.window)
        log_length(self.training_length)
        if self.compression < 1:
            raise ValueError(f"compression must be at least 1, got {self.compression}")

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        scale = log_length(self.training_length)
        k = self.compression
        query_positions = Divided(self.window * (k - 1), k)
        near = Piece(Band(0, self.window), query_scale=scale)
        far = Piece(Band(self.window), query_positions, Divided(0, k), query_scale=scale)
        return near, far
