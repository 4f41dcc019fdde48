"""Attention: pieces say who sees whom, kernels evaluate them. A kernel never knows a method's name."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention.accelerator import KERNELS, Kernel, choose, cudnn, platform_of, splash
from ctxext.attention.blocked import blocked
from ctxext.attention.dense import dense
from ctxext.attention.pieces import Attention, Band, Causal, Mask, Piece
from ctxext.attention.ring import ring
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
    "choose",
    "dense",
    "make_attention",
]

Attend = Callable[[Array, Array, Array, Any, Any], tuple[Array, Any]]
"""(q, k, v un-rotated, cache of a segment, layer of that segment) -> (attention output [B, T, N, H], cache)."""


def make_attention(
    attention: Attention,
    kernel: Kernel,
    rotation: Rotation | Float32Rotation,
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"] | None = None,
    place: Callable[[tuple[int, ...]], NamedSharding] | None = None,
) -> Attend:
    """Attention of a whole sequence with itself; rotary tables are built once for all layers.

    place: where an activation [B, T, heads, H] of a shape lies (None: on one device). Kernel "ring" wants it, and
    everything along T in `ring.zigzag` order.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r} is not known; choose one of {', '.join(KERNELS)}")
    pieces = attention.pieces()
    masks = tuple(piece.mask for piece in pieces)
    query_tables = [rotation.tables(piece.query_positions(positions)) for piece in pieces]
    key_tables = [rotation.tables(piece.key_positions(positions)) for piece in pieces]

    def attend(
        q: Float[Array, "b t n h"],
        k: Float[Array, "b t k h"],
        v: Float[Array, "b t k h"],
        cache: Any,
        layer: Any,
    ) -> tuple[Float[Array, "b t n h"], Any]:
        queries = [rotate(q, *tables) for tables in query_tables]
        keys = [rotate(k, *tables) for tables in key_tables]
        sharding = None if place is None else place(v.shape)
        T, packed = q.shape[1], segment_ids is not None
        chosen = choose(
            kernel, masks, platform=platform_of(sharding), seq_len=T, dtype=q.dtype, packed=packed
        )
        if chosen == "ring" and sharding is not None:
            return ring(queries, keys, v, masks, segment_ids=segment_ids, sharding=sharding), cache
        if chosen == "splash":
            return splash(
                queries[0], keys[0], v, masks[0], segment_ids=segment_ids, sharding=sharding
            ), cache
        if chosen == "cudnn":
            return cudnn(queries[0], keys[0], v, masks[0], sharding=sharding), cache
        if chosen in ("blocked", "ring"):  # a ring of one device
            return blocked(
                queries, keys, v, masks, segment_ids=segment_ids, sharding=sharding
            ), cache
        index = jnp.arange(T)[None]
        return dense(
            queries,
            keys,
            v,
            masks,
            query_index=index,
            key_index=index,
            query_segments=segment_ids,
            key_segments=segment_ids,
        ), cache

    return attend
