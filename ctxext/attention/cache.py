"""The decode cache and attention over it.

Keys are cached rotated where one piece rotates them for good, un-rotated where several pieces do, where a key's
position changes, or where the frequencies follow the length; un-rotated keys are turned when they are read.
Shapes: L layers of a segment, B batch, K key-value heads, S slots, H head_dim: a head's keys lie together, and its
values turned, as products read them. Slot j holds token j of the prompt; behind the prompt come the new tokens, those
of all continuations of one step together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ctxext.attention import Attend, Attention, Kernel, make_attention
from ctxext.attention.dense import dense
from ctxext.rope import Float32Rotation, Rotation, rotate


class Cache(NamedTuple):
    """Keys [L, B, K, S, H] and values [L, B, K, H, S] of a segment, or without L if it is one layer, numbered None.

    Also without B where it is one: for a product XLA reshapes an axis of one away, and then copies the whole cache.
    """

    keys: Array
    values: Array


def empty_cache(layers: int, shape: tuple[int, int, int, int], dtype: str) -> Cache:
    """A cache of zeros, for `shape` [B, K, S, H] of every layer; no slot is read before it is written."""
    B, K, S, H = shape
    heads = tuple(n for n in (layers, B) if n != 1) + (K,)
    return Cache(jnp.zeros((*heads, S, H), dtype), jnp.zeros((*heads, H, S), dtype))


def _stored(cache: Cache, keys: Array, values: Array, layer: Any, slot: Any) -> Cache:
    """The cache with keys and values [B, T, K, H] from `slot` on."""

    def put(old: Array, new: Array, *place: Any) -> Array:
        new = (new[0] if len(new) == 1 else new).astype(old.dtype)
        new, where = (new, ()) if layer is None else (new[None], (layer,))
        return jax.lax.dynamic_update_slice(
            old, new, (*where, *[0] * (new.ndim - len(where) - 2), *place)
        )

    return Cache(
        put(cache.keys, keys.swapaxes(1, 2), slot, 0),
        put(cache.values, values.transpose(0, 2, 3, 1), 0, slot),
    )


def _read(cache: Cache, layer: Any, batch: int) -> tuple[Array, Array]:
    """Keys and values [B, S, K, H] of a layer."""
    keys, values = cache if layer is None else (x[layer] for x in cache)
    keys, values = (x[None] if batch == 1 else x for x in (keys, values))
    return keys.swapaxes(1, 2), values.transpose(0, 3, 1, 2)


def caches_rotated(attention: Attention, *, incremental: bool) -> bool:
    """True if rotated keys can be cached: one piece, fixed key positions, frequencies that stay."""
    return attention.static_keys and len(attention.pieces()) == 1 and not incremental


def prefill(
    attention: Attention,
    kernel: Kernel,
    rotation: Rotation | Float32Rotation,
    positions: Int[Array, "b t"],
    *,
    rotated: bool,
) -> Attend:
    """Attention over the prompt that also fills slots 0 .. T-1. Right padding is overwritten before it is seen."""
    attend = make_attention(attention, kernel, rotation, positions)
    tables = rotation.tables(attention.pieces()[0].key_positions(positions))

    def attend_and_store(
        q: Array, k: Array, v: Array, cache: Cache, layer: Any
    ) -> tuple[Array, Cache]:
        out, _ = attend(q, k, v, None, layer)
        return out, _stored(cache, rotate(k, *tables) if rotated else k, v, layer, 0)

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
) -> Attend:
    """Attention of token `step` of every continuation over the prompt's cache, its own continuation's, and itself.

    The prompt of a row has `lengths` of the first `prompt_slots` slots. Token t of continuation j lies in slot prompt_slots +
    t * continuations + j, and is token number length + t to whoever asks for its position.
    """
    pieces = attention.pieces()
    slots, lengths = jnp.arange(num_slots)[None], lengths[:, None]
    prompt = slots < prompt_slots
    later, continuation = jnp.divmod(slots - prompt_slots, continuations)
    index = jnp.where(prompt, slots, lengths + later)  # [B, S]
    filled = jnp.where(prompt, slots < lengths, later <= step)
    own = (jnp.arange(continuations)[:, None] == continuation) | prompt  # [continuations, S]
    allowed = filled[:, None] & own[None]
    now = jnp.broadcast_to(lengths + step, (lengths.shape[0], continuations))
    query_tables = [rotation.tables(piece.query_positions(now)) for piece in pieces]
    key_tables = [
        rotation.tables(piece.key_positions(now if rotated else index)) for piece in pieces
    ]

    def attend(q: Array, k: Array, v: Array, cache: Cache, layer: Any) -> tuple[Array, Cache]:
        new = rotate(k, *key_tables[0]) if rotated else k
        cache = _stored(cache, new, v, layer, prompt_slots + step * continuations)
        stored, values = _read(cache, layer, len(q))
        keys = [stored] if rotated else [rotate(stored, *tables) for tables in key_tables]
        out = dense(
            [rotate(q, *tables) for tables in query_tables],
            keys,
            values,
            [piece.mask for piece in pieces],
            query_index=now,
            key_index=index,
            allowed=allowed,
        )
        return out, cache

    return attend
