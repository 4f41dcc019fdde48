"""CREAM: head, middle and tail of a long text (arXiv 2406.07138)."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np

from ctxext.positions import Placement, Positions, check_reach

GRID = 1000
"""Points at which the inverse of the normal distribution is known."""


@dataclasses.dataclass(frozen=True)
class CREAM(Positions):
    """Three pieces of a long text in a row: its head, its tail and some of its middle (2406.07138).

    A row of T tokens stands for a text of f T, where f = floor(L' / T) and L' is
    `max_position_embeddings`. Its positions are three blocks without gaps in them:

    * head: h tokens from position 0 on. For half of the rows h = floor(T / 3), for the others
      min(4 f, floor(T / 2)).
    * tail: h tokens up to the last position, f T - 1.
    * middle: the other M = T - 2 h tokens, which end at position e and may touch head or tail.
      e ~ U{floor(h + (M - 1) k / 2) .. floor(k T / 2) - h - 1}, where k is a normal number with
      `mean` and `deviation`, clamped to 2 .. 2 f and rounded down. With `middle` "uniform",
      e ~ U{T - h .. f T - h - 1}.

    These rules are the released code's. Two remarks on it: clamping makes no truncated normal
    distribution (with mean 9 and f = 4, k is 8 in 63 % of the rows), and its one choice of h serves
    thousands of documents, where here each row has its own.

    With `text` "positions", a row has the tokens that a text of f T has at these positions, and the
    target of a token is the next one of the text; in the released code the last token of a block
    predicts the first of the next block. With "row", T tokens of contiguous text get the positions,
    as in LongReD (arXiv 2502.07365), whose mean is 1 + f and deviation 5. Raises ValueError if T
    exceeds L'.
    """

    paper: ClassVar[str] = "2406.07138"
    max_position_embeddings: int
    middle: Literal["normal", "uniform"] = "normal"
    """How the end of the middle is drawn: by k, or uniformly (LongReD's other sampler)."""
    mean: float = 9.0
    """The mean of k before clamping; 1 + f is the middle of its range."""
    deviation: float = 3.0
    """The standard deviation of k before clamping."""
    text: Literal["positions", "row"] = "positions"
    """The tokens of a row: those at its positions in a longer text, or T tokens in a row."""

    def __post_init__(self) -> None:
        check_reach(self)
        if self.middle not in ("normal", "uniform"):
            raise ValueError(f"positions.middle is normal or uniform, got {self.middle!r}")
        if self.text not in ("positions", "row"):
            raise ValueError(f"positions.text is positions or row, got {self.text!r}")
        if not math.isfinite(self.mean) or not 0 < self.deviation < math.inf:
            raise ValueError(
                "positions.mean must be finite and positions.deviation above 0, "
                f"got {self.mean}, {self.deviation}"
            )

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        def integer(low: int, high: int) -> int:
            return int(rng.integers(low, high + 1))

        rows = [
            self.row(
                shape[1],
                in_thirds=bool(rng.integers(2)),
                uniform=float(rng.random()),
                integer=integer,
            )
            for _ in range(shape[0])
        ]
        return np.reshape(rows, shape).astype(np.int32)

    def place(
        self, rng: np.random.Generator, seq_len: int, text: Callable[[], np.ndarray]
    ) -> Placement:
        positions = self.sample(rng, (1, seq_len))[0]
        return Placement(positions, positions if self.text == "positions" else None)

    def text_tokens(self, seq_len: int) -> int:
        if self.text == "row":
            return seq_len
        return seq_len * self._factor(seq_len)

    def row(
        self, seq_len: int, *, in_thirds: bool, uniform: float, integer: Callable[[int, int], int]
    ) -> np.ndarray:
        """The positions of a row, int64 [T], from what was drawn.

        in_thirds: head and tail have a third of the tokens each. uniform: in 0 .. 1, for k.
        integer: draws a number between two, both included.
        """
        f = self._factor(seq_len)
        h = seq_len // 3
        if not in_thirds:
            h = min(4 * f, seq_len // 2)
        M = seq_len - 2 * h
        if self.middle == "normal":
            cdf, grid = _normal(self.mean, self.deviation, f)
            k = int(np.interp(uniform, cdf, grid))
            end = integer(h + (M - 1) * k // 2, seq_len * k // 2 - h - 1)
        else:
            last = f * seq_len - h - 1
            end = integer(min(seq_len - h, last), last)
        head = np.arange(h)
        middle = np.arange(end - M + 1, end + 1)
        tail = np.arange(f * seq_len - h, f * seq_len)
        return np.concatenate([head, middle, tail])

    def _factor(self, seq_len: int) -> int:
        check_reach(self, seq_len)
        return self.max_position_embeddings // seq_len


@functools.lru_cache(maxsize=64)
def _normal(mean: float, deviation: float, f: int) -> tuple[np.ndarray, np.ndarray]:
    """The normal distribution function on a grid from 2 to 2 f, and the grid."""
    grid = np.linspace(2, 2 * f, GRID)
    scaled = (grid - mean) / (deviation * math.sqrt(2))
    return np.array([0.5 * (1 + math.erf(x)) for x in scaled]), grid
