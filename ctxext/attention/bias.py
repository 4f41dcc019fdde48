"""ALiBi (arXiv 2108.12409) as arrays: -slope times distance, added to scores after their scaling.

The distance is that between the positions at which a piece would rotate. A method that maps
positions thus changes the distances of a model with ALiBi as it does those of a rotary one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ctxext.attention.heads import HeadSet
from ctxext.attention.pieces import Piece


@dataclasses.dataclass(frozen=True)
class LinearBias:
    """ALiBi (arXiv 2108.12409): -slope times the distance is added to a score, after scaling.

    The distance is that at which a piece rotates: between mapped positions, not token indices.
    """

    slopes: tuple[float, ...]
    """One per query head."""


class PositionBias(NamedTuple):
    """The bias of a call to P pieces: their slopes, and mapped positions, one array per piece."""

    slopes: Float[Array, "p n"]
    query_positions: tuple[Array, ...]
    key_positions: tuple[Array, ...]

    def of(self, piece: int, groups: int) -> Float[Array, "b k g t s"]:
        """The bias of a piece, to be added to its scores, float32. groups: K, key-value heads."""
        slopes = self.slopes[piece].reshape(groups, -1)
        return linear_bias(slopes, self.query_positions[piece], self.key_positions[piece])

    def of_heads(self, heads: HeadSet) -> "PositionBias":
        """The bias of a set of heads alone."""
        return PositionBias(
            heads.queries(self.slopes[np.array(heads.pieces)], -1),
            tuple(heads.of_pieces(self.query_positions)),
            tuple(heads.of_pieces(self.key_positions)),
        )


def has_bias(bias: LinearBias | None, pieces: Sequence[Piece]) -> bool:
    """Whether the model or a piece adds something to the scores."""
    return bias is not None or any(piece.bias is not None for piece in pieces)


def position_bias(
    bias: LinearBias | None,
    pieces: Sequence[Piece],
    num_heads: int,
    query_positions: Sequence[Array],
    key_positions: Sequence[Array],
) -> PositionBias | None:
    """The bias of the model and of the pieces, at these mapped positions of each piece."""
    if not has_bias(bias, pieces):
        return None
    slopes = np.zeros((len(pieces), num_heads))
    for number, piece in enumerate(pieces):
        if bias is not None:
            slopes[number] += bias.slopes
        if piece.bias is not None:
            slopes[number] += piece.bias(num_heads)
    return PositionBias(
        jnp.asarray(slopes, jnp.float32), tuple(query_positions), tuple(key_positions)
    )


def linear_bias(
    slopes: Float[Array, "k g"], query: Num[Array, "b t"], key: Num[Array, "b s"]
) -> Float[Array, "b k g t s"]:
    """-slope times the distance of two positions, float32. It has no gradient."""
    distance = (query[:, :, None] - key[:, None, :]).astype(jnp.float32)
    slopes = jax.lax.stop_gradient(slopes)
    return -slopes[None, :, :, None, None] * distance[:, None, None]


def alibi_slopes(heads: int, largest_exponent: float) -> tuple[float, ...]:
    """One slope per head: 2^(-b i / n) for i = 1 .. n, n the smallest power of two >= `heads`.

    b: `largest_exponent`, 8 in the paper. If n is more than `heads`, those with even i come first,
    as in the code of the authors of MPT, and the last n - `heads` are left out.
    """
    n = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-largest_exponent * np.arange(1, n + 1) / n)
    if n != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return tuple(slopes.tolist())
