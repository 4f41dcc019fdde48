"""ALiBi (arXiv 2108.12409), as a method for any model."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ctxext.attention.bias import alibi_slopes
from ctxext.attention.pieces import Attention, Band, Piece


@dataclasses.dataclass(frozen=True)
class AlibiSlopes:
    """The slopes of ALiBi for so many heads."""

    largest_exponent: float

    def __call__(self, num_heads: int) -> Sequence[float]:
        return alibi_slopes(num_heads, self.largest_exponent)


@dataclasses.dataclass(frozen=True)
class Alibi(Attention):
    """Scores minus m_h D, with m_h = 2^(-b h / n) for head h of n (arXiv 2108.12409).

    For a number of heads that is no power of two, the slopes of BLOOM, which are those of MPT. The
    rotation of the model stays: together with `NoPE` it is ALiBi as in the paper,
    which needs training; on a rotary model, a preference for what is near. A model that has ALiBi
    already gets both.
    """

    paper: ClassVar[str] = "2108.12409"
    largest_exponent: float = 8.0
    """b, 8 in the paper; `alibi_bias_max` of MPT."""

    def __post_init__(self) -> None:
        if not 0 < self.largest_exponent < math.inf:
            raise ValueError(
                f"largest_exponent must be positive and finite, got {self.largest_exponent}"
            )

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        return (Piece(Band(), bias=AlibiSlopes(self.largest_exponent)),)
