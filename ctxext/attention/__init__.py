"""Attention: pieces say who sees whom, kernels evaluate them and never know a method's name."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention.bias import position_bias
from ctxext.attention.blocked import blocked
from ctxext.attention.dense import dense
from ctxext.attention.documents import mapped_positions, rotary_tables
from ctxext.attention.kernels import KERNELS, Kernel, evaluate
from ctxext.attention.layers import ALIKE, Kind, LayerKind, Layers
from ctxext.attention.pieces import Attention, Band, Causal, Mask, Piece
from ctxext.rope_by_length import SequenceRotation

__all__ = [
    "KERNELS",
    "Attend",
    "Attention",
    "Band",
    "Causal",
    "Kernel",
    "LayerKind",
    "Layers",
    "Mask",
    "Piece",
    "blocked",
    "dense",
    "make_attention",
]


@runtime_checkable
class Attend(Protocol):
    """(q, k, v, cache of a segment, layer of that segment) -> (output [B, T, N, H], cache).

    q, k and v come before their rotation. kind: that of the layer, see `layers`.
    """

    def __call__(
        self, q: Array, k: Array, v: Array, cache: Any, layer: Any, kind: Kind = 0, /
    ) -> tuple[Array, Any]: ...


def make_attention(
    attention: Attention,
    kernel: Kernel,
    rotation: SequenceRotation,
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"] | None = None,
    *,
    sharding_of: Callable[[tuple[int, ...]], NamedSharding] | None = None,
    cut: bool = False,
    layers: Layers = ALIKE,
) -> Attend:
    """Make attention of sequences with themselves; rotary tables are built once for all layers.

    segment_ids: those of packed rows, whose documents never see each other and are read as alone.
    sharding_of: the sharding of an activation [B, T, heads, H] by its shape; None: one device.
    cut: the sharding cuts the sequences, and everything along T comes in `ring.zigzag` order.
    layers: how layers differ from each other.
    """
    pieces = attention.pieces()
    bias = None
    if layers.bias is not None:
        bias = position_bias(layers.bias, *mapped_positions(pieces, positions, segment_ids))
    query_tables, key_tables = rotary_tables(pieces, rotation, positions, segment_ids)

    def attend(
        q: Float[Array, "b t n h"],
        k: Float[Array, "b t k h"],
        v: Float[Array, "b t k h"],
        cache: Any,
        layer: Any,
        kind: Kind = 0,
    ) -> tuple[Float[Array, "b t n h"], Any]:
        rotated = layers.rotation(kind)
        out = evaluate(
            kernel,
            [rotated(q, tables) for tables in query_tables],
            [rotated(k, tables) for tables in key_tables],
            v,
            layers.masks(attention, kind),
            segment_ids=segment_ids,
            sharding=None if sharding_of is None else sharding_of(v.shape),
            cut=cut,
            kind=None if isinstance(kind, int) else kind,
            bias=bias,
        )
        return out, cache

    return attend
