"""The decode cache, and attention that fills it with a prompt.

Keys are cached rotated where all pieces rotate them alike, and for good. They are cached not
rotated where pieces differ in that or where the frequencies or the method follow the length, and
are then rotated when read.

Slot j < prompt_slots holds token j of the prompt. After the prompt come the new tokens, those of
all continuations of one step together: token t of continuation j is in slot
prompt_slots + t * continuations + j, and its token index is the prompt's length + t.
`decode` attends to both.

Shapes: L layers of a segment, B batch, T tokens, K key-value heads, S slots, H head_dim. A head's
keys are [S, H] and its values [H, S], as the products of attention read them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention import Attend, Attention, Kernel, make_attention
from ctxext.attention.bias import position_bias
from ctxext.attention.blocked import block_size, blocked_chunk
from ctxext.attention.devices import platform_of
from ctxext.attention.heads import HeadSet, over_heads
from ctxext.attention.layers import ALIKE, Kind, Layers
from ctxext.attention.length import pieces_at, pieces_of_any_length
from ctxext.attention.pieces import within
from ctxext.attention.tables import Tables, key_tables, query_tables
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


def write(cache: Cache, keys: Array, values: Array, layer: Any, slot: Any) -> Cache:
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


def read(
    cache: Cache, layer: Any, *, batch: int, first: int, count: int
) -> tuple[Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """Keys and values of a layer in `count` slots from `first` on."""
    where = {"batch": batch, "first": first, "count": count}
    keys = _slots_of_layer(cache.keys, layer, axis=-2, **where)
    values = _slots_of_layer(cache.values, layer, axis=-1, **where)
    return keys.swapaxes(1, 2), values.transpose(0, 3, 1, 2)


def _slots_of_layer(
    cached: Array, layer: Any, *, batch: int, first: Any, count: int, axis: int
) -> Array:
    """Keys [B, K, S, H] or values [B, K, H, S] in `count` slots from `first` on.

    axis: that of the slots in `cached`, -2 for keys and -1 for values.
    """
    starts: list[Any] = [0] * cached.ndim
    sizes = list(cached.shape)
    if layer is not None:
        starts[0] = layer
        sizes[0] = 1
    starts[axis] = first
    sizes[axis] = count
    slots = jax.lax.dynamic_slice(cached, starts, sizes)
    return slots.reshape(batch, *slots.shape[-3:])


def caches_rotated(attention: Attention, *, re_rotated: bool) -> bool:
    """True if rotated keys can be cached: all pieces rotate them alike, and no step does anew."""
    if re_rotated:
        return False
    pieces = pieces_of_any_length(attention)
    turns = [(piece.key_positions, piece.stretched) for piece in pieces]
    return all(turn == turns[0] for turn in turns)


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
    tables = key_tables(pieces_at(attention, rotation)[0], rotation, positions)

    def attend_and_store(
        q: Array, k: Array, v: Array, cache: Cache, layer: Any, kind: Kind = 0, number: Any = 0
    ) -> tuple[Array, Cache]:
        out, _ = attend(q, k, v, None, layer, kind, number)
        keys = layers.rotation(kind)(k, tables) if rotated else k
        return out, write(cache, keys, v, layer, 0)

    return attend_and_store


@dataclasses.dataclass(frozen=True)
class _CachedBlocks:
    """Blocks [B, K, C, H] of a layer's keys or values, each read when it is asked for."""

    cached: Array
    """The keys or the values of a `Cache`."""
    axis: int
    """That of the slots in `cached`, -2 for keys and -1 for values."""
    layer: Any
    batch: int
    size: int
    """C, tokens per block."""
    heads: HeadSet
    """The heads that are asked for."""
    rotate: Callable[[Array, Tables], Array] | None = None
    """Turns keys that are cached not rotated; None: nothing is turned."""
    tables: Tables | None = None
    """Those of all slots, for `rotate`."""

    def __getitem__(self, number: Any) -> Array:
        first = number * self.size
        block = _slots_of_layer(
            self.cached,
            self.layer,
            batch=self.batch,
            first=first,
            count=self.size,
            axis=self.axis,
        )
        block = self.heads.keys(block if self.axis == -2 else block.swapaxes(-1, -2), 1)
        if self.rotate is None:
            return block
        of_block = jax.tree.map(
            lambda table: jax.lax.dynamic_slice_in_dim(table, first, self.size, axis=1),
            self.tables,
        )
        return self.rotate(block.swapaxes(1, 2), of_block).swapaxes(1, 2)


def prefill_chunk(
    attention: Attention,
    rotation: Rotation | Float32Rotation,
    chunk: Any,
    *,
    num_chunks: int,
    tokens: int,
    rotated: bool,
    layers: Layers = ALIKE,
) -> Attend:
    """Make attention of chunk number `chunk` of the prompt, which also fills its slots.

    A layer reads the `num_chunks` chunks, of `tokens` tokens each, in their order: a chunk attends
    to the slots of those before it and to itself, and the kernel is "blocked". The frequencies are
    those of the whole prompt, so that the chunks together equal `prefill`. The kind of a layer is
    not traced.
    """
    pieces = layers.scaled(pieces_at(attention, rotation))
    num_slots = num_chunks * tokens
    query_index = (chunk * tokens + jnp.arange(tokens))[None]
    key_index = jnp.arange(num_slots)[None]
    tables_of_queries = [query_tables(piece, rotation, query_index) for piece in pieces]
    # As in `decode`: rotated when they are written, or all of them whenever they are read.
    key_positions = query_index if rotated else key_index
    tables_of_keys = [key_tables(piece, rotation, key_positions) for piece in pieces]

    def attend(
        q: Array, k: Array, v: Array, cache: Cache, layer: Any, kind: Kind = 0, number: Any = 0
    ) -> tuple[Array, Cache]:
        assert isinstance(kind, int)
        window = layers.kinds[kind].window
        rotate = layers.rotation(kind, number)
        B, _, N, _ = q.shape
        K = k.shape[2]
        size = min(block_size(num_slots, platform_of(None), B * N), tokens)
        new_keys = rotate(k, tables_of_keys[0]) if rotated else k
        cache = write(cache, new_keys, v, layer, chunk * tokens)
        masks = [within(piece.mask, window) for piece in pieces]
        bias = position_bias(
            layers.bias,
            pieces,
            N,
            [jnp.repeat(piece.query_positions(query_index), B, 0) for piece in pieces],
            [jnp.repeat(piece.key_positions(key_index), B, 0) for piece in pieces],
        )

        def of_heads(heads: HeadSet) -> Array:
            own_q = heads.queries(q)
            num_keys = heads.keys(k).shape[2]
            keys = _CachedBlocks(cache.keys, -2, layer, B, size, heads)
            if not rotated:
                keys = dataclasses.replace(keys, rotate=rotate)
            return blocked_chunk(
                [rotate(own_q, tables) for tables in heads.of_pieces(tables_of_queries)],
                [
                    dataclasses.replace(keys, tables=tables)
                    for tables in heads.of_pieces(tables_of_keys)
                ],
                _CachedBlocks(cache.values, -1, layer, B, size, heads),
                heads.of_pieces(masks),
                chunk=chunk,
                num_chunks=num_chunks,
                size=size,
                groups=own_q.shape[2] // num_keys,
                bias=None if bias is None else bias.of_heads(heads),
            )

        return over_heads(pieces, N, K, of_heads), cache

    return attend
