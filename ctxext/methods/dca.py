"""Dual chunk attention (arXiv 2402.17463)."""

import dataclasses
from typing import Any, ClassVar

from ctxext.attention.maps import At, Modulo
from ctxext.attention.masks import Chunks
from ctxext.attention.pieces import Attention, Piece


@dataclasses.dataclass(frozen=True)
class LengthTemperature:
    """(0.05 ln(max(l / L, 1)) + 1)^2 for every query of a text of l tokens."""

    seq_len: Any
    training_length: int

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        m = 0.05 * xp.log(xp.maximum(self.seq_len / self.training_length, 1.0)) + 1
        return m * m + xp.zeros(positions.shape)


@dataclasses.dataclass(frozen=True)
class DCA(Attention):
    """Dual chunk attention: keys are at their index in a chunk of c tokens (arXiv 2402.17463).

    A key is at p mod c, with c = `chunk_size` S - `local_window` w. A query is at p mod c for keys
    of its own chunk, at min(p mod c + c, S) for those of the chunk before, and at min(2 c - 1, S)
    for older ones: distances to the last w tokens at least are exact, and none exceeds S. It needs
    no training. The maps are those of the released code, where S = 3 L / 4; the paper's reach
    L - 1. The released file for Llama also multiplies logits by (0.05 ln(max(l / L, 1)) + 1)^2,
    which `training_length` L turns on; here l is the length of the text so far, for all queries.
    """

    paper: ClassVar[str] = "2402.17463"
    chunk_size: int = dataclasses.field(metadata={"example": 3072})
    """S, the largest distance, tokens; 3 L / 4 in the released code."""
    local_window: int = dataclasses.field(metadata={"example": 512})
    """w, tokens before a query that keep their exact distance; in the released code L / 8 for Llama
    and L / 16 for Qwen."""
    training_length: int | None = None
    """L of the temperature in the released code for Llama, tokens; None: none, as in the paper."""

    def __post_init__(self) -> None:
        if not 1 <= self.local_window < self.chunk_size:
            raise ValueError(
                f"need 1 <= local_window < chunk_size, got {self.local_window} and "
                f"{self.chunk_size}"
            )
        if self.training_length is not None and self.training_length < 1:
            raise ValueError(f"training_length must be positive, got {self.training_length}")

    @property
    def depends_on_length(self) -> bool:  # type: ignore[override]
        return self.training_length is not None

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        scale = None
        if self.training_length is not None:
            scale = LengthTemperature(seq_len, self.training_length)
        size = self.chunk_size - self.local_window
        keys = Modulo(size)
        previous = Modulo(size, size, self.chunk_size)
        older = At(min(2 * size - 1, self.chunk_size))
        return (
            Piece(Chunks(size, 0, 1), keys, keys, query_scale=scale),
            Piece(Chunks(size, 1, 2), previous, keys, query_scale=scale),
            Piece(Chunks(size, 2), older, keys, query_scale=scale),
        )
