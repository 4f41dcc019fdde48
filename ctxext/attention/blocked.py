"""Attention over visible block pairs only: linear memory in T, its own backward pass, any pieces.

The online softmax of FlashAttention (arXiv 2205.14135) as one `lax.scan` per piece over the list of (query block,
key block) pairs that its mask leaves visible; the backward pass recomputes the scores from the saved log-sum-exp.
Shapes: B batch, T tokens, K key-value heads, G queries per key head, H head_dim, M blocks of C tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctxext.attention.pieces import Mask

HIDDEN = -1e30
LOG2E = float(np.log2(np.e))  # exp2 is cheaper than exp, and exp(x) = exp2(x log2 e)


def block_size(seq_len: int) -> int:
    """Tokens per block: measured best on CPU at short and long lengths."""
    return min(128 if seq_len <= 2048 else 256, seq_len)


def visible_pairs(mask: Mask, num_blocks: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Block pairs [P, 2] whose every pair of tokens is visible, and those where only some are."""
    full, partly = [], []
    blocks = [range(i * size, (i + 1) * size) for i in range(num_blocks)]
    for i, query in enumerate(blocks):
        for j, key in enumerate(blocks[: i + 1]):
            some, every = mask.block(query, key)
            if some:
                (full if every else partly).append((i, j))
    return np.array(full, np.int32).reshape(-1, 2), np.array(partly, np.int32).reshape(-1, 2)


def blocked(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[Mask],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` over one sequence, in O(T) memory. Tokens of different segments never see each other."""
    B, T, N, H = queries[0].shape
    K, C = values.shape[2], block_size(T)
    M = -(-T // C)

    # Masks are causal, so that no token sees the padding after the last one; every token sees itself, so that no sum
    # of weights is zero.
    def split(x: Array, groups: int) -> Array:  # [B, T, K * G, H] -> [M, B, K, G * C, H]
        x = jnp.pad(x, ((0, 0), (0, M * C - T), (0, 0), (0, 0)))
        return x.reshape(B, M, C, K, groups, H).transpose(1, 0, 3, 4, 2, 5).reshape(M, B, K, groups * C, H)

    G = N // K
    q, k, v = tuple(split(x, G) for x in queries), tuple(split(x, 1) for x in keys), split(values, 1)
    segments = None
    if segment_ids is not None:
        padded = jnp.pad(segment_ids, ((0, 0), (0, M * C - T)), constant_values=-1)
        segments = padded.reshape(B, M, C).transpose(1, 0, 2)
    out: Array = _flash(q, k, v, segments, tuple(masks), C)
    out = out.reshape(M, B, K, G, C, H).transpose(1, 0, 4, 2, 3, 5).reshape(B, M * C, N, H)
    return out[:, :T]


def _over_pairs(step: Callable, state: Any, masks: tuple[Mask, ...], M: int, C: int) -> Any:
    """Fold `step(state, piece, mask or None, i, j)` over the visible block pairs of every piece."""
    for piece, mask in enumerate(masks):
        full, partly = visible_pairs(mask, M, C)
        for pairs, inside in ((full, None), (partly, mask)):
            if len(pairs):

                def body(state: Any, pair: Array, piece: int = piece, inside: Mask | None = inside) -> tuple:
                    return step(state, piece, inside, pair[0], pair[1]), None

                state, _ = jax.lax.scan(body, state, jnp.asarray(pairs))
    return state


def _scores(q: Array, k: Array, mask: Mask | None, segments: Array | None, i: Array, j: Array, C: int) -> Array:
    """Base-2 scores of one block pair, float32 [B, K, G * C, C]; hidden pairs at -1e30."""
    s = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32) * (q.shape[-1] ** -0.5 * LOG2E)
    visible = None
    if mask is not None:
        query, key = i * C + jnp.arange(C)[:, None], j * C + jnp.arange(C)[None, :]
        visible = mask.visible(query, key)[None]
    if segments is not None:
        same = segments[i][:, :, None] == segments[j][:, None, :]
        visible = same if visible is None else visible & same
    if visible is None:
        return s
    B, K, GC, _ = s.shape
    grouped = s.reshape(B, K, GC // C, C, C)
    return jnp.where(visible[:, None, None], grouped, HIDDEN).reshape(s.shape)


def _forward(q: tuple, k: tuple, v: Array, segments: Array | None, masks: tuple, C: int) -> tuple[Array, Array]:
    M, B, K, GC, H = q[0].shape

    def step(state: tuple, piece: int, mask: Mask | None, i: Array, j: Array) -> tuple:
        out, top, total = state
        s = _scores(q[piece][i], k[piece][j], mask, segments, i, j, C)
        old = top[i]
        new = jnp.maximum(old, s.max(-1))
        p = jnp.exp2(s - new[..., None])
        shrink = jnp.exp2(old - new)  # 0 at a row's first visible key: what hidden blocks before it counted is gone
        update = jnp.einsum("bkqs,bksh->bkqh", p.astype(v.dtype), v[j], preferred_element_type=jnp.float32)
        return (
            out.at[i].set(out[i] * shrink[..., None] + update),
            top.at[i].set(new),
            total.at[i].set(total[i] * shrink + p.sum(-1)),
        )

    state = (
        jnp.zeros((M, B, K, GC, H), jnp.float32),
        jnp.full((M, B, K, GC), HIDDEN, jnp.float32),
        jnp.zeros((M, B, K, GC), jnp.float32),
    )
    out, top, total = _over_pairs(step, state, masks, M, C)
    return (out / total[..., None]).astype(v.dtype), top + jnp.log2(total)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _flash(q: tuple, k: tuple, v: Array, segments: Array | None, masks: tuple, C: int) -> Array:
    return _forward(q, k, v, segments, masks, C)[0]


def _flash_forward(q: tuple, k: tuple, v: Array, segments: Array | None, masks: tuple, C: int) -> tuple:
    out, log_sum = _forward(q, k, v, segments, masks, C)
    return out, (q, k, v, segments, out, log_sum)


def _flash_backward(masks: tuple, C: int, saved: tuple, grad: Array) -> tuple:
    q, k, v, segments, out, log_sum = saved
    inner = (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)

    def step(state: tuple, piece: int, mask: Mask | None, i: Array, j: Array) -> tuple:
        dq, dk, dv = state
        q_i, k_j, g_i = q[piece][i], k[piece][j], grad[i]
        s = _scores(q_i, k_j, mask, segments, i, j, C)
        p = jnp.exp2(s - log_sum[i][..., None])  # hidden pairs: exp2(-1e30) = 0; padding has no gradient
        dp = jnp.einsum("bkqh,bksh->bkqs", g_i, v[j], preferred_element_type=jnp.float32)
        ds = (p * (dp - inner[i][..., None]) * q_i.shape[-1] ** -0.5).astype(q_i.dtype)
        dv_j = jnp.einsum("bkqs,bkqh->bksh", p.astype(g_i.dtype), g_i, preferred_element_type=jnp.float32)
        dq_i = jnp.einsum("bkqs,bksh->bkqh", ds, k_j, preferred_element_type=jnp.float32)
        dk_j = jnp.einsum("bkqs,bkqh->bksh", ds, q_i, preferred_element_type=jnp.float32)
        dq = tuple(x.at[i].add(dq_i) if n == piece else x for n, x in enumerate(dq))
        dk = tuple(x.at[j].add(dk_j) if n == piece else x for n, x in enumerate(dk))
        return dq, dk, dv.at[j].add(dv_j)

    def zeros(x: Array) -> Array:
        return jnp.zeros(x.shape, jnp.float32)

    state = (tuple(map(zeros, q)), tuple(map(zeros, k)), zeros(v))
    dq, dk, dv = _over_pairs(step, state, masks, v.shape[0], C)
    return (*jax.tree.map(lambda x, y: x.astype(y.dtype), (dq, dk, dv), (q, k, v)), None)


_flash.defvjp(_flash_forward, _flash_backward)
