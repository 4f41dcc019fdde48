"""The decode cache and attention over it.

Keys are cached rotated where one piece rotates them for good. They are cached not rotated where
several pieces rotate them or the frequencies follow the length, and are then rotated when read.

Slot j < prompt_slots holds token j of the prompt. After the prompt come the new tokens, those of
all continuations of one step together: token t of continuation j is in slot
prompt_slots + t * continuations + j, and its token index is the prompt's length + t.

Shapes: L layers of a segment, B batch, T tokens, K key-value heads, S slots, H head_dim. A head's
keys are [S, H] and its values [H, S], as the products of attention read them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ctxext.attention import Attend, Attention, Kernel, make_attention
from ctxext.attention.bias import position_bias
from ctxext.attention.dense import dense
from ctxext.attention.layers import ALIKE, Kind, Layers
from ctxext.rope import Float32Rotation, Rotation


class Cache(NamedTuple):
    """Keys [L, B, K, S, H] and values [L, B, K, H, S] of a segment.

    Without L for a segment of one layer, whose number is None, and without B for a batch of one:
    XLA would reshape an axis of one away for every product, and copy the whole cache.
    """

    keys: Array
    values: Array


def empty_cache(layers: int, shape: tuple[int, int, int, int], dtype: str) -> Cache:
    """A cache of zeros, for `shape` [B, K, S, H] of every layer; slots are written before read."""
    B, K, S, H = shape
    leading = tuple(n for n in (layers, B) if n != 1)
    return Cache(jnp.zeros((*leading, K, S, H), dtype), jnp.zeros((*leading, K, H, S), dtype))


def _write(cache: Cache, keys: Array, values: Array, layer: Any, slot: Any) -> Cache:
    """The cache with keys and values [B, T, K, H] written from `slot` on."""

    def put(old: Array, new: Array, *start: Any) -> Array:
        """`new` [B, K, ...] at `start` of the last two axes."""
        new = (new[0] if len(new) == 1 else new).astype(old.dtype)
        leading: tuple = ()
        if layer is not None:
            new = new[None]
            leading = (layer,)
        zeros = [0] * (new.ndim - len(leading) - 2)
        return jax.lax.dynamic_update_slice(old, new, (*leading, *zeros, *start))

    return Cache(
        put(cache.keys, keys.swapaxes(1, 2), slot, 0),
        put(cache.values, values.transpose(0, 2, 3, 1), 0, slot),
    )


def _read(cache: Cache, layer: Any, batch: int) -> tuple[Array, Array]:
    """Keys and values [B, S, K, H] of a layer."""
    keys, values = cache if layer is None else (x[layer] for x in cache)
    keys, values = (x[None] if batch == 1 else x for x in (keys, values))
    return keys.swapaxes(1, 2), values.transpose(0, 3, 1, 2)


def caches_rotated(attention: Attention, *, re_rotated: bool) -> bool:
    """True if rotated keys can be cached: one piece, and no step that rotates old keys anew."""
    return len(attention.pieces()) == 1 and not re_rotated


def prefill(
    attention: Attention,
    kernel: Kernel,
    rotation: Rotation | Float32Rotation,
    positions: Int[Array, "b t"],
    *,
    rotated: bool,
    layers: Layers = ALIKE,
) -> Attend:
    """Make attention over the prompt that also fills slots 0 .. T-1.

    Slots of right padding are overwritten before they are seen. rotated: see `caches_rotated`.
    """
    attend = make_attention(attention, kernel, rotation, positions, layers=layers)
    tables = rotation.tables(attention.pieces()[0].key_positions(positions))

    def attend_and_store(
        q: Array, k: Array, v: Array, cache: Cache, layer: Any, kind: Kind = 0
    ) -> tuple[Array, Cache]:
        out, _ = attend(q, k, v, None, layer, kind)
        keys = layers.rotation(kind)(k, tables) if rotated else k
        return out, _write(cache, keys, v, layer, 0)

    return attend_and_store


def decode(
    attention: Attention,
    rotation: Rotation | Float32Rotation,
    lengths: Int[Array, " b"],
    step: Any,
    *,
    prompt_slots: int,
    continuations: int,
    num_slots: int,
    rotated: bool,
    layers: Layers = ALIKE,
) -> Attend:
    """Make attention of token `step` of every continuation.

    It attends to the prompt, to its continuation so far and to itself. The prompt of a row
    fills `lengths` of the first `prompt_slots` slots. rotated: see `caches_rotated`.
    """
    pieces = attention.pieces()
    slots = jnp.arange(num_slots)[None]
    lengths = lengths[:, None]
    in_prompt = slots < prompt_slots
    slot_step, slot_continuation = jnp.divmod(slots - prompt_slots, continuations)

    key_index = jnp.where(in_prompt, slots, lengths + slot_step)  # [B, S]
    filled = jnp.where(in_prompt, slots < lengths, slot_step <= step)  # [B, S]
    own = (
        jnp.arange(continuations)[:, None] == slot_continuation
    ) | in_prompt  # [continuations, S]
    allowed = filled[:, None] & own[None]  # [B, continuations, S]
    query_index = jnp.broadcast_to(lengths + step, (lengths.shape[0], continuations))

    bias = position_bias(
        layers.bias,
        [piece.query_positions(query_index) for piece in pieces],
        [piece.key_positions(key_index) for piece in pieces],
    )
    query_tables = [rotation.tables(piece.query_positions(query_index)) for piece in pieces]
    # Rotated keys are rotated once, when they are written; others all, whenever they are read.
    key_positions = query_index if rotated else key_index
    key_tables = [rotation.tables(piece.key_positions(key_positions)) for piece in pieces]

    def attend(
        q: Array, k: Array, v: Array, cache: Cache, layer: Any, kind: Kind = 0
    ) -> tuple[Array, Cache]:
        rotate = layers.rotation(kind)
        new_keys = rotate(k, key_tables[0]) if rotated else k
        cache = _write(cache, new_keys, v, layer, prompt_slots + step * continuations)
        cached_keys, values = _read(cache, layer, len(q))
        keys = [cached_keys]
        if not rotated:
            keys = [rotate(cached_keys, tables) for tables in key_tables]
        out = dense(
            [rotate(q, tables) for tables in query_tables],
            keys,
            values,
            layers.masks(attention, kind),
            query_index=query_index,
            key_index=key_index,
            allowed=allowed,
            kind=None if isinstance(kind, int) else kind,
            bias=bias,
        )
        return out, cache

    return attend
