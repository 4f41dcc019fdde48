"""Attention over visible block pairs only: linear memory in T, its own backward pass, any pieces.

One loop per piece over the list of (query block, key block) pairs that its mask leaves visible.
Shapes: B batch, T tokens, K key-value heads, G queries per key head, H head_dim, M blocks of C tokens.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention import tiles
from ctxext.attention.accelerator import GPU, heads_of, largest_block, platform_of
from ctxext.attention.pieces import Mask


def block_size(seq_len: int, platform: str, heads: int) -> int:
    """Tokens per block; heads: rows x query heads on one device.

    A quarter of the length from 128 on: measured on CPU at 8 and 16 heads, the best or near it, but for whole rows of
    1,024, where half is up to a third faster and packed ones skip less; on TPU within a tenth of the best by the
    compiler's estimates at 32. On GPU half of the length, see `largest_block`.
    """
    largest, parts = largest_block(platform, heads), 2 if platform in GPU else 4
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
    """Equal to `dense` over one sequence, in O(T) memory. Tokens of different segments never see each other.

    sharding: that of `values`, if they lie on several devices.
    """
    _, T, N, _ = queries[0].shape
    K, C = (
        values.shape[2],
        block_size(T, platform_of(sharding), heads_of(queries[0].shape, sharding)),
    )
    pad = -T % C

    # Masks are causal, so that no token sees the padding after the last one; every token sees itself, so that no sum
    # of weights is zero.
    def split(x: Array, groups: int) -> Array:
        return tiles.split(jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))), C, groups)

    q, k, v = (
        tuple(split(x, N // K) for x in queries),
        tuple(split(x, 1) for x in keys),
        split(values, 1),
    )
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids, ((0, 0), (0, pad)), constant_values=-1)
    out: Array = _flash(q, k, v, tiles.split_segments(segment_ids, C), tuple(masks), C)
    return out[:, :T]


def _work(masks: tuple[Mask, ...], blocks: tiles.Blocks, C: int) -> tiles.Work:
    work, M = [], blocks.start.shape[0]
    for piece, mask in enumerate(masks):
        full, partly = tiles.visible_pairs(mask, M, C)
        for pairs, inside in ((full, None), (partly, mask)):
            work.append((tiles.Tile(piece, inside, C), tiles.Pairs(jnp.asarray(pairs), len(pairs))))
    return tiles.within_segments(work, blocks, blocks)


def _blocks(v: Array, segments: Array | None, C: int) -> tiles.Blocks:
    return tiles.Blocks(jnp.arange(v.shape[0]) * C, segments)


def _forward(
    q: tuple, k: tuple, v: Array, segments: Array | None, masks: tuple, C: int
) -> tuple[Array, Array]:
    blocks = _blocks(v, segments, C)
    state = tiles.add_values(
        tiles.no_softmax(q[0]), q, k, v, blocks, blocks, _work(masks, blocks, C)
    )
    return tiles.softmax(state, q[0], v.dtype, C)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q: tuple, k: tuple, v: Array, segments: Array | None, masks: tuple, C: int) -> Array:
    return _forward(q, k, v, segments, masks, C)[0]


def _flash_forward(
    q: tuple, k: tuple, v: Array, segments: Array | None, masks: tuple, C: int
) -> tuple:
    out, log_sum = tiles.named(*_forward(q, k, v, segments, masks, C))
    return out, (q, k, v, segments, out, log_sum)


def _flash_backward(masks: tuple, C: int, saved: tuple, grad: Array) -> tuple:
    q, k, v, segments, out, log_sum = saved
    out, grad = (tiles.split(x, C, out.shape[2] // v.shape[2]) for x in (out, grad))
    inner = (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    blocks = _blocks(v, segments, C)
    work = _work(masks, blocks, C)
    state = tiles.no_gradients((q, k, v))
    gradients = tiles.add_gradients(state, q, k, v, (grad, inner, log_sum), blocks, blocks, work)
    return (*jax.tree.map(lambda x, y: x.astype(y.dtype), gradients, (q, k, v)), None)


_flash.defvjp(_flash_forward, _flash_backward)
