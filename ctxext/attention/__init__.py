"""Attention: pieces say who sees whom, kernels evaluate them and never know a method's name."""

from collections.abc import Callable
from typing import Any

from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention.blocked import blocked
from ctxext.attention.dense import dense
from ctxext.attention.documents import rotary_tables
from ctxext.attention.kernels import KERNELS, Kernel, evaluate
from ctxext.attention.pieces import Attention, Band, Causal, Mask, Piece
from ctxext.rope import Float32Rotation, Rotation, rotate

__all__ = [
    "KERNELS",
    "Attend",
    "Attention",
    "Band",
    "Causal",
    "Kernel",
    "Mask",
    "Piece",
    "blocked",
    "dense",
    "make_attention",
]

Attend = Callable[[Array, Array, Array, Any, Any], tuple[Array, Any]]
"""(q, k, v, cache of a segment, layer of that segment) -> (output [B, T, N, H], cache).

q, k and v come before their rotation.
"""


def make_attention(
    attention: Attention,
    kernel: Kernel,
    rotation: Rotation | Float32Rotation,
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"] | None = None,
    *,
    sharding_of: Callable[[tuple[int, ...]], NamedSharding] | None = None,
    cut: bool = False,
) -> Attend:
    """Make attention of sequences with themselves; rotary tables are built once for all layers.

    segment_ids: those of packed rows, whose documents never see each other and are read as alone.
    sharding_of: the sharding of an activation [B, T, heads, H] by its shape; None: one device.
    cut: the sharding cuts the sequences, and everything along T comes in `ring.zigzag` order.
    """
    pieces = attention.pieces()
    masks = [piece.mask for piece in pieces]
    query_tables, key_tables = rotary_tables(pieces, rotation, positions, segment_ids)

    def attend(
        q: Float[Array, "b t n h"],
        k: Float[Array, "b t k h"],
        v: Float[Array, "b t k h"],
        cache: Any,
        layer: Any,
    ) -> tuple[Float[Array, "b t n h"], Any]:
        out = evaluate(
            kernel,
            [rotate(q, *tables) for tables in query_tables],
            [rotate(k, *tables) for tables in key_tables],
            v,
            masks,
            segment_ids=segment_ids,
            sharding=None if sharding_of is None else sharding_of(v.shape),
            cut=cut,
        )
        return out, cache

    return attend
