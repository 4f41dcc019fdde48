"""Attention over visible block pairs only: linear memory in T, its own backward pass, any pieces.

Shapes: B batch, T tokens, N query heads, K key-value heads, G = N / K, H head_dim, M blocks of C
tokens; see `tiles` for blocked arrays.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention import tiles
from ctxext.attention.devices import GPU, platform_of, rows_times_heads
from ctxext.attention.documents import first_tokens
from ctxext.attention.pieces import Mask


def block_size(seq_len: int, platform: str, heads: int) -> int:
    """Tokens per block; heads: rows x query heads per device.

    A quarter of the length from 128 on. Measured on CPU with 8 and 16 heads that is the best or
    close to it, except for whole rows of 1,024, where half is up to a third faster and packed ones
    skip less; on TPU it is within a tenth of the best by the compiler's estimates with 32 heads.
    On GPU half of the length, see `tiles.largest_block`.
    """
    parts = 2 if platform in GPU else 4
    largest = tiles.largest_block(platform, heads)
    sizes = [size for size in (256, 512, 1024) if parts * size <= seq_len and size <= largest]
    return min(max(sizes, default=128), seq_len)


def blocked(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[Mask],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    sharding: NamedSharding | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` over one sequence, in O(T) memory.

    Tokens of different segments never see each other. sharding: that of `values`, if they are on
    several devices.
    """
    _, T, N, _ = queries[0].shape
    K = values.shape[2]
    heads = rows_times_heads(queries[0].shape, sharding)
    C = block_size(T, platform_of(sharding), heads)
    pad = -T % C

    # Masks are causal, so that no token sees the padding after the last one; every token sees
    # itself, so that no sum of weights is zero.
    def split(x: Array, groups: int) -> Array:
        return tiles.split(jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))), C, groups)

    q = tuple(split(x, N // K) for x in queries)
    k = tuple(split(x, 1) for x in keys)
    v = split(values, 1)
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)), constant_values=-1)
    first = first_tokens(masks, jnp.arange(T + pad)[None], segment_ids)
    blocks = tiles.Blocks(
        jnp.arange(v.shape[0]) * C,
        tiles.split_tokens(segment_ids, C),
        tiles.split_tokens(first, C),
    )
    out: Array = _flash(q, k, v, blocks, tuple(masks), C)
    return out[:, :T]


def _work(masks: tuple[Mask, ...], blocks: tiles.Blocks, C: int) -> tiles.Work:
    work = []
    packed = blocks.segments is not None
    for piece, mask in enumerate(masks):
        full, partly = tiles.visible_pairs(mask, blocks.start.shape[0], C, packed=packed)
        for pairs, needed_mask in ((full, None), (partly, mask)):
            tile = tiles.Tile(piece, needed_mask, C)
            work.append((tile, tiles.Pairs(jnp.asarray(pairs), len(pairs))))
    return tiles.within_segments(work, blocks, blocks)


def _output_and_lse(
    q: tuple, k: tuple, v: Array, blocks: tiles.Blocks, masks: tuple, C: int
) -> tuple[Array, Array]:
    state = tiles.empty_softmax(q[0])
    work = _work(masks, blocks, C)
    state = tiles.accumulate_softmax(state, q, k, v, blocks, blocks, work)
    return tiles.finish_softmax(state, q[0], v.dtype, C)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q: tuple, k: tuple, v: Array, blocks: tiles.Blocks, masks: tuple, C: int) -> Array:
    return _output_and_lse(q, k, v, blocks, masks, C)[0]


def _flash_forward(
    q: tuple, k: tuple, v: Array, blocks: tiles.Blocks, masks: tuple, C: int
) -> tuple:
    out, lse = tiles.named(*_output_and_lse(q, k, v, blocks, masks, C))
    return out, (q, k, v, blocks, out, lse)


def _flash_backward(masks: tuple, C: int, saved: tuple, grad: Array) -> tuple:
    q, k, v, blocks, out, lse = saved
    groups = out.shape[2] // v.shape[2]
    out, grad = (tiles.split(x, C, groups) for x in (out, grad))
    delta = tiles.output_delta(out, grad)
    work = _work(masks, blocks, C)
    state = tiles.zero_gradients((q, k, v))
    gradients = tiles.accumulate_gradients(state, q, k, v, (grad, delta, lse), blocks, blocks, work)
    dq, dk, dv = jax.tree.map(lambda x, like: x.astype(like.dtype), gradients, (q, k, v))
    return dq, dk, dv, None


_flash.defvjp(_flash_forward, _flash_backward)
