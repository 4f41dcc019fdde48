"""ALiBi (arXiv 2108.12409), as a method for any model."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from ctxext.attention.bias import alibi_slopes
from ctxext.attention.pieces import Attention, Band, Piece


@dataclasses.dataclass(frozen=True)
class AlibiSlopes:
    """The slopes of ALiBi, m_h, as a function of the number of heads."""

    largest_exponent: float

    def __call__(self, num_heads: int) -> Sequence[float]:
        return alibi_slopes(num_heads, self.largest_exponent)


@dataclasses.dataclass(frozen=True)
class Alibi(Attention):
    """Scores minus m_h D, with m_h = 2^(-b h / n) for head h of n (arXiv 2108.12409).

    For a number of heads that is not a power of two, the slopes are those of BLOOM and MPT. The
    rotation of the model stays, so that a rotary model gets a preference for what is near. Together
    with `NoPE` it is ALiBi as in the paper, which needs training. A model that has ALiBi already
    gets both.
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
