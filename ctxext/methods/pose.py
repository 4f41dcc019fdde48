"""PoSE, positional skip-wise training (arXiv 2309.10400)."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.positions import Positions, check_reach


@dataclasses.dataclass(frozen=True)
class PoSE(Positions):
    """N chunks of one row, chunk i moved by u_i ~ U{u_{i-1} .. L' - T}, u_0 = 0 (arXiv 2309.10400).

    Every distance below L' = `max_position_embeddings` is trained at the cost of T tokens. The text
    stays contiguous; only positions jump. Every chunk but the last has U{1 .. floor((T + 1) / N)}
    tokens, the last has the rest. For N = 2 that is the released code, which has no other N; the
    lengths of more chunks are our choice. Raises ValueError if T exceeds L' or is less than N.
    """

    paper: ClassVar[str] = "2309.10400"
    max_position_embeddings: int
    num_chunks: int = 2
    """N, chunks of a row."""

    def __post_init__(self) -> None:
        check_reach(self)
        if self.num_chunks < 2:
            raise ValueError(
                f"PoSE needs at least 2 chunks, got {self.num_chunks}; to train without jumps, "
                "leave PoSE out (method contiguous)"
            )

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        B, T = shape
        N = self.num_chunks
        slack = self.max_position_embeddings - T
        check_reach(self, T)
        if T < N:
            raise ValueError(
                f"PoSE cannot cut rows of {T} tokens into {N} chunks; set positions.num_chunks to "
                f"at most {T}, or train.seq_len to at least {N}"
            )
        starts = np.cumsum(rng.integers(1, (T + 1) // N + 1, (B, N - 1)), axis=1)
        positions = np.broadcast_to(np.arange(T), (B, T)).copy()
        moved = 0
        for start in starts.T:
            before = moved
            moved = rng.integers(before, slack + 1, (B, 1))
            positions += np.where(np.arange(T) >= start[:, None], moved - before, 0)
        return positions.astype(np.int32)
