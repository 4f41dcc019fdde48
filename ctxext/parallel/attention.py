"""Attention over the devices of a mesh, and the order of the tokens that it needs."""

from typing import Any

import jax
import numpy as np

from ctxext.attention import Attend, Attention, Kernel, make_attention
from ctxext.attention.layers import ALIKE, Layers
from ctxext.attention.ring import zigzag
from ctxext.parallel.mesh import Mesh
from ctxext.rope_by_length import SequenceRotation


def ring_order(x: jax.Array, mesh: Mesh) -> jax.Array:
    """[B, T, ...] with the tokens in the order that ring attention needs, sharded over `seq`."""
    num_devices = mesh.build().shape["seq"]
    if num_devices == 1:
        return x
    ordered = x[:, zigzag(x.shape[1], num_devices)]
    return jax.lax.with_sharding_constraint(ordered, mesh.activations(x.shape))


def token_order(x: jax.Array, mesh: Mesh) -> jax.Array:
    """[B, T, ...] in the order of the text again, the inverse of `ring_order`."""
    num_devices = mesh.build().shape["seq"]
    if num_devices == 1:
        return x
    return x[:, np.argsort(zigzag(x.shape[1], num_devices))]


def shard_attention(attend: Attend, mesh: Mesh, *, whole: bool = False) -> Attend:
    """`attend` with inputs and output constrained to their shardings: rows, tokens and heads.

    As every layer attends, this fixes the activations of the whole model. whole: every device of
    the `seq` axis has all tokens.
    """
    if mesh.build().size == 1:
        return attend

    def constrain(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, mesh.activations(x.shape, whole=whole))

    def sharded_attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: Any,
        layer: Any,
        kind: Any = 0,
        number: Any = 0,
    ) -> tuple[jax.Array, Any]:
        q, k, v = constrain(q), constrain(k), constrain(v)
        out, cache = attend(q, k, v, cache, layer, kind, number)
        return constrain(out), cache

    return sharded_attend


def make_sharded_attention(
    mesh: Mesh,
    attention: Attention,
    kernel: Kernel,
    rotation: SequenceRotation,
    positions: jax.Array,
    segment_ids: jax.Array | None = None,
    layers: Layers = ALIKE,
) -> Attend:
    """Make attention of whole sequences over the devices of a mesh; tokens come in `ring_order`."""
    attend = make_attention(
        attention,
        kernel,
        rotation,
        positions,
        segment_ids,
        sharding_of=mesh.activations,
        cut=mesh.seq != 1,
        layers=layers,
    )
    return shard_attention(attend, mesh)
