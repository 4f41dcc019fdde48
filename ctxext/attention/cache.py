"""The decode cache and attention over it.

Keys are cached rotated where one piece rotates them for good, un-rotated where several pieces do, where a key's
position changes, or where the frequencies follow the length; un-rotated keys are turned when they are read.
Shapes: L layers of a segment, B batch, K key-value heads, S slots, H head_dim: a head's keys lie together, as products
read them. Slot j holds token j of the prompt; behind the prompt come the new tokens, those of all branches of one step
together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ctxext.attention import Attend, Attention, Kernel, over_sequence
from ctxext.attention.dense import dense_by_head
from ctxext.rope import Float32Rotation, Rotation, rotate


class Cache(NamedTuple):
    """Keys and values of a segment: [L, B, K, S, H], or [B, K, S, H] if it is one layer, whose number is None."""

    keys: Array
    values: Array


def empty_cache(layers: int, shape: tuple[int, int, int, int], dtype: str) -> Cache:
    """A cache of zeros, of `shape` [B, K, S, H] for every layer; no slot is read before it is written."""
    whole = shape if layers == 1 else (layers, *shape)
    return Cache(jnp.zeros(whole, dtype), jnp.zeros(whole, dtype))


def _stored(cache: Cache, keys: Array, values: Array, layer: Any, slot: Any) -> Cache:
    """The cache with keys and values [B, T, K, H] from `slot` on."""

    def put(old: Array, new: Array) -> Array:
        new = new.swapaxes(1, 2).astype(old.dtype)
        if layer is None:
            return jax.lax.dynamic_update_slice(old, new, (0, 0, slot, 0))
        return jax.lax.dynamic_update_slice(old, new[None], (layer, 0, 0, slot, 0))

    return Cache(put(cache.keys, keys), put(cache.values, values))


def caches_rotated(attention: Attention, *, incremental: bool) -> bool:
    """True if rotated keys can be cached: one piece, fixed key positions, frequencies that stay."""
    return attention.static_keys and len(attention.pieces()) == 1 and not incremental


def prefill(
    attention: Attention, kernel: Kernel, rotation: Rotation | Float32Rotation, positions: Int[Array, "b t"],
    *, rotated: bool,
) -> Attend:  # fmt: skip
    """Attention over the prompt that also fills slots 0 .. T-1. Right padding is overwritten before it is seen."""
    attend = over_sequence(attention, kernel, rotation, positions)
    tables = rotation.tables(attention.pieces()[0].key_positions(positions))

    def attend_and_store(q: Array, k: Array, v: Array, cache: Cache, layer: Any) -> tuple[Array, Cache]:
        out, _ = attend(q, k, v, None, layer)
        return out, _stored(cache, rotate(k, *tables) if rotated else k, v, layer, 0)

    return attend_and_store


def decode(
    attention: Attention, rotation: Rotation | Float32Rotation, lengths: Int[Array, " b"], step: Any,
    *, prompt_slots: int, branches: int, num_slots: int, rotated: bool,
) -> Attend:  # fmt: skip
    """Attention of token `step` of every branch over the prompt's cache, its own branch's, and itself.

    The prompt of a row has `lengths` of the first `prompt_slots` slots. Token t of branch j lies in slot prompt_slots +
    t * branches + j, and is token number length + t to whoever asks for its position.
    """
    pieces = attention.pieces()
    slots, lengths = jnp.arange(num_slots)[None], lengths[:, None]
    prompt = slots < prompt_slots
    later, branch = jnp.divmod(slots - prompt_slots, branches)
    index = jnp.where(prompt, slots, lengths + later)  # [B, S]
    filled = jnp.where(prompt, slots < lengths, later <= step)
    own = (jnp.arange(branches)[:, None] == branch) | prompt  # [branches, S]
    allowed = filled[:, None] & own[None]
    now = jnp.broadcast_to(lengths + step, (lengths.shape[0], branches))
    query_tables = [rotation.tables(piece.query_positions(now)) for piece in pieces]
    key_tables = [rotation.tables(piece.key_positions(now if rotated else index)) for piece in pieces]

    def attend(q: Array, k: Array, v: Array, cache: Cache, layer: Any) -> tuple[Array, Cache]:
        new = rotate(k, *key_tables[0]) if rotated else k
        cache = _stored(cache, new, v, layer, prompt_slots + step * branches)
        stored, values = (x if layer is None else x[layer] for x in cache)
        turned = stored.swapaxes(1, 2)
        keys = [stored] if rotated else [rotate(turned, *tables).swapaxes(1, 2) for tables in key_tables]
        out = dense_by_head(
            [rotate(q, *tables) for tables in query_tables], keys, values,
            [piece.mask for piece in pieces], query_index=now, key_index=index, allowed=allowed,
        )  # fmt: skip
        return out, cache

    return attend
