"""PoSE, positional skip-wise training (arXiv 2309.10400)."""

import dataclasses
from typing import ClassVar

import numpy as np

from ctxext.positions import Positions, check_reach


@dataclasses.dataclass(frozen=True)
class PoSE(Positions):
    """N chunks of one row, chunk i moved by u_i ~ U{u_{i-1} .. L' - T} with u_0 = 0 (arXiv 2309.10400).

    Every chunk but the last has U{1 .. floor((T + 1) / N)} tokens, the last the rest. For N = 2 that is the released
    code, which has no other; the lengths of more chunks are ours. Every distance below L' = `max_position_embeddings`
    is trained at the cost of T. The text stays contiguous; only positions jump. Raises ValueError if T exceeds L' or is
    less than N.
    """

    paper: ClassVar[str] = "2309.10400"
    max_position_embeddings: int
    num_chunks: int = 2

    def __post_init__(self) -> None:
        check_reach(self)
        if self.num_chunks < 2:
            raise ValueError(
                f"PoSE needs at least 2 chunks, got {self.num_chunks}; without jumps, leave PoSE out "
                "(--method contiguous)"
            )

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        B, T = shape
        N, slack = self.num_chunks, self.max_position_embeddings - T
        check_reach(self, T)
        if T < N:
            raise ValueError(
                f"PoSE cannot cut rows of {T} tokens into {N} chunks; set positions.num_chunks to at most "
                f"{T}, or train.seq_len to at least {N}"
            )
        starts = np.cumsum(rng.integers(1, (T + 1) // N + 1, (B, N - 1)), axis=1)
        positions = np.broadcast_to(np.arange(T), (B, T)).copy()
        skip = 0
        for start in starts.T:
            before, skip = skip, rng.integers(skip, slack + 1, (B, 1))
            positions += np.where(np.arange(T) >= start[:, None], skip - before, 0)
        return positions.astype(np.int32)
