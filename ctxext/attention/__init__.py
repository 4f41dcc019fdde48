"""Attention: pieces say who sees whom, kernels evaluate them and never know a method's name."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention.bias import has_bias, position_bias
from ctxext.attention.blocked import blocked
from ctxext.attention.dense import dense
from ctxext.attention.documents import mapped_positions, rotary_tables
from ctxext.attention.heads import HeadSet, over_heads
from ctxext.attention.kernels import KERNELS, Kernel, evaluate
from ctxext.attention.layers import ALIKE, Kind, LayerKind, Layers
from ctxext.attention.length import pieces_at
from ctxext.attention.pieces import Attention, Band, Causal, Heads, Mask, Piece
from ctxext.rope_by_length import SequenceRotation

__all__ = [
    "KERNELS",
    "Attend",
    "Attention",
    "Band",
    "Causal",
    "Heads",
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

    q, k and v come before their rotation. kind: that of the layer, see `layers`. number: that of
    the layer in the model, from 0.
    """

    def __call__(
        self,
        q: Array,
        k: Array,
        v: Array,
        cache: Any,
        layer: Any,
        kind: Kind = 0,
        number: Any = 0,
        /,
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
    pieces = layers.scaled(pieces_at(attention, rotation))
    mapped: Any = ((), ())
    if has_bias(layers.bias, pieces):
        mapped = mapped_positions(pieces, positions, segment_ids)
    query_tables, key_tables = rotary_tables(pieces, rotation, positions, segment_ids)

    def attend(
        q: Float[Array, "b t n h"],
        k: Float[Array, "b t k h"],
        v: Float[Array, "b t k h"],
        cache: Any,
        layer: Any,
        kind: Kind = 0,
        number: Any = 0,
    ) -> tuple[Float[Array, "b t n h"], Any]:
        rotate = layers.rotation(kind, number)
        masks = layers.masks(pieces, kind)
        num_heads = q.shape[2]
        bias = position_bias(layers.bias, pieces, num_heads, *mapped)

        def of_heads(heads: HeadSet) -> Array:
            own_q, own_k, values = heads.queries(q), heads.keys(k), heads.keys(v)
            return evaluate(
                kernel,
                [rotate(own_q, tables) for tables in heads.of_pieces(query_tables)],
                [rotate(own_k, tables) for tables in heads.of_pieces(key_tables)],
                values,
                heads.of_pieces(masks),
                segment_ids=segment_ids,
                sharding=None if sharding_of is None else sharding_of(values.shape),
                cut=cut,
                kind=None if isinstance(kind, int) else kind,
                bias=None if bias is None else bias.of_heads(heads),
            )

        return over_heads(pieces, num_heads, k.shape[2], of_heads), cache

    return attend
