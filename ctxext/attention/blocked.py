"""Attention over visible block pairs only: linear memory in T, its own backward pass, any pieces.

Shapes: B batch, T tokens, N query heads, K key-value heads, G = N / K, H head_dim, M blocks of C
tokens; see `tiles` for blocked arrays.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention import tiles
from ctxext.attention.bias import PositionBias
from ctxext.attention.devices import GPU, platform_of, rows_times_heads
from ctxext.attention.documents import first_tokens
from ctxext.attention.layers import LayerMask
from ctxext.attention.parts import WHOLE, Parts, parts_of
from ctxext.attention.pieces import Mask


def block_size(seq_len: int, platform: str, heads: int, *, packed: bool = False) -> int:
    """Tokens per block; heads: rows x query heads per device; packed: rows hold several documents.

    A part of the length from 128 on: of packed rows a quarter, so that more block pairs have no
    document in common. Of whole rows half on a CPU, where only products of 512 tokens keep both of
    two cores busy; a quarter on TPU, which is within a tenth of the best by the compiler's
    estimates with 32 heads. On GPU half, see `tiles.largest_block`.
    """
    halves = platform in GPU or (platform == "cpu" and not packed)
    share = 2 if halves else 4
    largest = tiles.largest_block(platform, heads)
    sizes = [size for size in (256, 512, 1024) if share * size <= seq_len and size <= largest]
    return min(max(sizes, default=128), seq_len)


def blocked(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[LayerMask],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    sharding: NamedSharding | None = None,
    kind: Any = None,
    bias: PositionBias | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` over one sequence, in O(T) memory.

    Tokens of different segments never see each other. sharding: that of `values`, if they are on
    several devices. kind: that of the layer, for masks that are one per kind. bias: see `dense`.
    """
    T = values.shape[1]
    heads = rows_times_heads(queries[0].shape, sharding)
    C = block_size(T, platform_of(sharding), heads, packed=segment_ids is not None)
    q, k, v, layout = _in_blocks(queries, keys, values, masks, segment_ids, C, kind, bias)
    groups = queries[0].shape[2] // values.shape[2]
    # Over several devices, rows and heads are cut already: each device has its own.
    parts = WHOLE
    if sharding is None or sharding.mesh.size == 1:
        parts = parts_of(q[0], groups, platform_of(sharding))
    out: Array = _flash(q, k, v, layout, _Program(tuple(masks), C, parts))
    return out[:, :T]


def gradients(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[LayerMask],
    segment_ids: Int[Array, "b t"] | None,
    saved: tuple[Float[Array, "b t n h"], Float[Array, "b t n"], Float[Array, "b t n h"]],
) -> tuple[tuple[Array, ...], tuple[Array, ...], Array]:
    """Those of queries, keys and values, where another kernel computed the output.

    saved: the output, the log-sum-exp of its scores, float32, and the gradient of the output. All
    are on one device.
    """
    out, lse, grad = saved
    _, T, N, _ = queries[0].shape
    heads = rows_times_heads(queries[0].shape, None)
    C = block_size(T, platform_of(None), heads, packed=segment_ids is not None)
    q, k, v, layout = _in_blocks(queries, keys, values, masks, segment_ids, C, None, None)
    groups = N // values.shape[2]
    in_blocks = tiles.split(_padded(lse[..., None], C), C, groups)[..., 0]
    padded = q, k, v, layout, _padded(out, C), in_blocks * np.float32(np.log2(np.e))
    program = _Program(tuple(masks), C, parts_of(q[0], groups, platform_of(None)))
    dq, dk, dv, _ = _flash_backward(program, padded, _padded(grad, C))

    def whole(x: Array) -> Array:
        return tiles.join(x, C)[:, :T]

    return tuple(map(whole, dq)), tuple(map(whole, dk)), whole(dv)


def _padded(x: Array, C: int) -> Array:
    """[B, T, ...] with zeros after the last token, up to a multiple of C."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % C), (0, 0), (0, 0)))


def _in_blocks(
    queries: Sequence[Array],
    keys: Sequence[Array],
    values: Array,
    masks: Sequence[LayerMask],
    segment_ids: Array | None,
    C: int,
    kind: Any,
    bias: PositionBias | None,
) -> tuple[tuple[Array, ...], tuple[Array, ...], Array, "_Layout"]:
    """Queries, keys and values in blocks of C tokens, and the layout of these."""
    _, T, N, _ = queries[0].shape
    K = values.shape[2]
    pad = -T % C

    # Masks are causal, so that no token sees the padding after the last one; every token sees
    # itself, so that no sum of weights is zero.
    def split(x: Array, groups: int) -> Array:
        return tiles.split(_padded(x, C), C, groups)

    q = tuple(split(x, N // K) for x in queries)
    k = tuple(split(x, 1) for x in keys)
    v = split(values, 1)
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)), constant_values=-1)
    first = first_tokens(masks, jnp.arange(T + pad)[None], segment_ids)
    starts = jnp.arange(v.shape[0]) * C
    segments = tiles.split_tokens(segment_ids, C)
    first = tiles.split_tokens(first, C)
    layout = _Layout(tiles.Blocks(starts, segments, first), (), tiles.LayerInputs(kind))
    if bias is not None:
        layout = _Layout(
            tiles.Blocks(starts, segments, first, _positions(bias.query_positions, C)),
            _positions(bias.key_positions, C),
            tiles.LayerInputs(kind, tiles.split_slopes(bias.slopes, N // K)),
        )
    return q, k, v, layout


def blocked_chunk(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[tiles.NumberedBlocks],
    values: tiles.NumberedBlocks,
    masks: Sequence[Mask],
    *,
    chunk: Any,
    num_chunks: int,
    size: int,
    groups: int,
    bias: PositionBias | None = None,
) -> Float[Array, "b t n h"]:
    """Attention of one chunk of a sequence, equal to those tokens of `blocked` over all of it.

    Only the blocks up to the end of the chunk are visited. keys and values: blocks of `size` tokens
    of the sequence, of one key per piece. chunk: the number of the chunk, which may be traced, of
    `num_chunks`, each of T tokens. groups: queries per key head. bias: its key positions are those
    of the whole sequence.
    """
    per_chunk = queries[0].shape[1] // size
    num_blocks = num_chunks * per_chunk
    first_block = chunk * per_chunk
    query_positions: tuple[Array, ...] = ()
    key_positions: tuple[Array, ...] = ()
    of_layer = tiles.ALL_ALIKE
    if bias is not None:
        query_positions = _positions(bias.query_positions, size)
        key_positions = _positions(bias.key_positions, size)
        of_layer = tiles.LayerInputs(slopes=tiles.split_slopes(bias.slopes, groups))
    starts = (first_block + jnp.arange(per_chunk)) * size
    query_blocks = tiles.Blocks(starts, None, None, query_positions)
    key_blocks = tiles.Blocks(jnp.arange(num_blocks) * size, None, None, key_positions)
    work = []
    for piece, mask in enumerate(masks):
        full, partly = tiles.visible_pairs(mask, num_blocks, size)
        for pairs, needed_mask in ((full, None), (partly, mask)):
            of_chunk = tiles.pairs_of_chunk(pairs, chunk, num_chunks, per_chunk)
            work.append((tiles.Tile(piece, needed_mask, size), of_chunk))
    q = tuple(tiles.split(x, size, groups) for x in queries)
    state = tiles.empty_softmax(q[0])
    parts = parts_of(q[0], groups, platform_of(None))
    state = tiles.accumulate_softmax(
        state, q, tuple(keys), values, query_blocks, key_blocks, work, of_layer, parts
    )
    out, _ = tiles.finish_softmax(state, q[0], queries[0].dtype, size)
    return out


def _positions(of_pieces: tuple[Array, ...], C: int) -> tuple[Array, ...]:
    """The mapped positions [B, T] of every piece in blocks [M, B, C]; padding is never visible."""

    def in_blocks(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % C)))
        return padded.reshape(x.shape[0], -1, C).transpose(1, 0, 2)

    return tuple(in_blocks(x) for x in of_pieces)


class _Layout(NamedTuple):
    """The arrays of a call besides queries, keys and values; no gradient is asked of them."""

    queries: tiles.Blocks
    """Where the blocks of queries are."""
    key_positions: tuple[Array, ...]
    """The mapped positions of the keys of each piece [M, B, C]; empty without a bias."""
    layer: tiles.LayerInputs

    @property
    def keys(self) -> tiles.Blocks:
        """Where the blocks of keys are: those of the queries, at positions of their own."""
        return self.queries._replace(positions=self.key_positions)


class _Program(NamedTuple):
    """The static part of a call: another value is another compiled program."""

    masks: tuple[LayerMask, ...]
    size: int
    """C, tokens per block."""
    parts: Parts


def _work(program: _Program, layout: _Layout) -> tiles.Work:
    work = []
    blocks = layout.queries
    packed = blocks.segments is not None
    num_blocks = blocks.start.shape[0]
    C = program.size
    for piece, mask in enumerate(program.masks):
        full, partly = tiles.pairs_in(mask, layout.layer.kind, num_blocks, C, packed=packed)
        for pairs, needed_mask in ((full, None), (partly, mask)):
            work.append((tiles.Tile(piece, needed_mask, C), pairs))
    return tiles.within_segments(work, blocks, blocks, program.parts)


def _output_and_lse(
    q: tuple, k: tuple, v: Array, layout: _Layout, program: _Program
) -> tuple[Array, Array]:
    state = tiles.accumulate_softmax(
        tiles.empty_softmax(q[0]),
        q,
        k,
        v,
        layout.queries,
        layout.keys,
        _work(program, layout),
        layout.layer,
        program.parts,
    )
    return tiles.finish_softmax(state, q[0], v.dtype, program.size)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(q: tuple, k: tuple, v: Array, layout: _Layout, program: _Program) -> Array:
    return _output_and_lse(q, k, v, layout, program)[0]


def _flash_forward(q: tuple, k: tuple, v: Array, layout: _Layout, program: _Program) -> tuple:
    out, lse = tiles.named(*_output_and_lse(q, k, v, layout, program))
    return out, (q, k, v, layout, out, lse)


def _flash_backward(program: _Program, saved: tuple, grad: Array) -> tuple:
    q, k, v, layout, out, lse = saved
    groups = out.shape[2] // v.shape[2]
    out, grad = (tiles.split(x, program.size, groups) for x in (out, grad))
    gradients = tiles.accumulate_gradients(
        tiles.zero_gradients((q, k, v)),
        q,
        k,
        v,
        (grad, tiles.output_delta(out, grad), lse),
        layout.queries,
        layout.keys,
        _work(program, layout),
        layout.layer,
        program.parts,
    )
    dq, dk, dv = jax.tree.map(lambda x, like: x.astype(like.dtype), gradients, (q, k, v))
    return dq, dk, dv, None


_flash.defvjp(_flash_forward, _flash_backward)
