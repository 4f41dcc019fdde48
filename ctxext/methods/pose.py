"""PoSE, positional skip-wise training (arXiv 2309.10400)."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.positions import Positions


@dataclasses.dataclass(frozen=True)
class PoSE(Positions):
    """Two chunks of one row, the second moved by u ~ U{0 .. seq_len' - T}; the first has r ~ U{1 .. T / 2} tokens.

    Trains every distance up to `max_position_embeddings` (the target length in tokens) at the cost of T
    (arXiv 2309.10400). The text itself stays contiguous; only positions jump. Raises ValueError if T exceeds it.
    """

    paper: ClassVar[str] = "2309.10400"
    max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.max_position_embeddings < 1:
            raise ValueError(f"max_position_embeddings must be at least 1, got {self.max_position_embeddings}")

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        B, T = shape
        if self.max_position_embeddings < T:
            raise ValueError(f"PoSE reaches {self.max_position_embeddings} positions, fewer than the {T} tokens "
                             "of a row; raise positions.max_position_embeddings")  # fmt: skip
        index = np.arange(T, dtype=np.int32)[None]
        first = rng.integers(1, max(2, T // 2 + 1), (B, 1))
        skip = rng.integers(0, self.max_position_embeddings - T + 1, (B, 1))
        return (index + np.where(index >= first, skip, 0)).astype(np.int32)
