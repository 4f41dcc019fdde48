"""One block pair at a time of an online softmax, forward and backward: what `blocked` and `ring` fold over pairs.

The online softmax of FlashAttention (arXiv 2205.14135); the backward pass recomputes the scores from the saved
log-sum-exp. Shapes: B batch, K key-value heads, G queries per key head, H head_dim, M blocks of C tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from ctxext.attention.pieces import Mask

MASK_VALUE = -1e30
SAVED = "attention"
LOG2E = float(np.log2(np.e))  # exp2 is cheaper than exp, and exp(x) = exp2(x log2 e)


class Blocks(NamedTuple):
    """Where blocks of tokens lie: the index of each one's first token [M], and its segment ids [M, B, C] if packed."""

    start: Array
    segments: Array | None


class Pairs(NamedTuple):
    """Block pairs [P, 2] of (query block, key block), of which the first `count` are visited."""

    pairs: Any
    count: Any


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a piece's pairs share: its number, its mask where only some token pairs are visible, C, and whether tokens
    may be of different segments."""

    piece: int
    mask: Mask | None
    size: int
    mixed: bool = True

    def scores(
        self, q: Array, k: Array, queries: Blocks, keys: Blocks, i: Array, j: Array
    ) -> Array:
        """Products q k of one block pair, float32 [B, K, G * C, C]; hidden pairs at -1e30."""
        s = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
        visible = None
        if self.mask is not None:
            inside = jnp.arange(self.size)
            query, key = queries.start[i] + inside[:, None], keys.start[j] + inside[None, :]
            visible = self.mask.visible(query, key)[None]
        if self.mixed and queries.segments is not None and keys.segments is not None:
            same = queries.segments[i][:, :, None] == keys.segments[j][:, None, :]
            visible = same if visible is None else visible & same
        if visible is None:
            return s
        B, K, GC, C = s.shape
        grouped = s.reshape(B, K, GC // C, C, C)
        return jnp.where(visible[:, None, None], grouped, MASK_VALUE).reshape(s.shape)


Work = Sequence[tuple[Tile, Pairs]]
"""Everything to visit: the pairs of every piece, those with a mask apart from those without."""


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


def within_segments(work: Work, queries: Blocks, keys: Blocks) -> Work:
    """Of packed rows: without the pairs that have no segment in common, and those inside a single one on their own.

    A piece's pairs come as those without its mask and those with it, and so they go.
    """
    if queries.segments is None or keys.segments is None:
        return work
    query, key = (_span(segments) for segments in (queries.segments, keys.segments))
    found = []
    for (tile, plain), (masked, partly) in zip(work[::2], work[1::2], strict=True):
        pairs = jnp.concatenate([plain.pairs, partly.pairs])
        index, P = jnp.arange(len(pairs)), len(plain.pairs)
        visited = jnp.where(index < P, index < plain.count, index - P < partly.count)
        (low, high), (key_low, key_high) = (
            tuple(x[pairs[:, n]] for x in span) for n, span in enumerate((query, key))
        )
        visited &= ((low <= key_high) & (key_low <= high)).any(1)
        inside = (
            visited
            & (index < P)
            & ((low == high) & (key_low == key_high) & (low == key_low)).all(1)
        )
        found += [
            (dataclasses.replace(tile, mixed=False), _chosen(pairs[:P], inside[:P])),
            (masked, _chosen(pairs, visited & ~inside)),
        ]
    return found


def _span(segments: Array) -> tuple[Array, Array]:
    """The first and last segment of each block, [M, B] each; padding comes last."""
    ids = jnp.where(segments > 0, segments, jnp.iinfo(jnp.int32).max + segments)
    return ids.min(-1), ids.max(-1)


def _chosen(pairs: Array, chosen: Array) -> Pairs:
    return Pairs(pairs[jnp.argsort(~chosen, stable=True)], chosen.sum())


def split(x: Array, size: int, groups: int) -> Array:
    """[B, M * C, K * G, H] -> [M, B, K, G * C, H]."""
    B, T, heads, H = x.shape
    M, K = T // size, heads // groups
    x = x.reshape(B, M, size, K, groups, H).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(M, B, K, groups * size, H)


def join(x: Array, size: int) -> Array:
    """[M, B, K, G * C, H] -> [B, M * C, K * G, H], the inverse of `split`."""
    M, B, K, rows, H = x.shape
    x = x.reshape(M, B, K, rows // size, size, H).transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(B, M * size, -1, H)


def split_segments(segment_ids: Array | None, size: int) -> Array | None:
    """[B, M * C] -> [M, B, C]."""
    if segment_ids is None:
        return None
    return segment_ids.reshape(segment_ids.shape[0], -1, size).transpose(1, 0, 2)


def _to_base_2(q: Array) -> float:
    """What makes products q k the exponents of 2; applied with the exponential, as a pass of its own costs a tenth."""
    return q.shape[-1] ** -0.5 * LOG2E


def _fold(step: Callable, state: Any, work: Work) -> Any:
    """Fold `step(state, tile, i, j)` over the pairs of all pieces."""
    for tile, (pairs, count) in work:
        if pairs.shape[0]:

            def body(carry: tuple, tile: Tile = tile, pairs: Array = pairs) -> tuple:
                n, state = carry
                return n + 1, step(state, tile, pairs[n, 0], pairs[n, 1])

            # Not a scan: of that, rematerialisation keeps what depends on no parameter, the masks of all pairs.
            state = jax.lax.while_loop(
                lambda carry, count=count: carry[0] < count, body, (0, state)
            )[1]
    return state


def no_softmax(q: Array) -> tuple[Array, Array, Array]:
    """The state before any pair was visited: weighted values, running maxima, sums of weights."""
    return (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], MASK_VALUE, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )


def add_values(
    state: tuple, q: tuple, k: tuple, v: Array, queries: Blocks, keys: Blocks, work: Work
) -> tuple:
    """The softmax state after the pairs of `work`."""
    scale = _to_base_2(q[0])

    def step(state: tuple, tile: Tile, i: Array, j: Array) -> tuple:
        out, top, total = state
        s = tile.scores(q[tile.piece][i], k[tile.piece][j], queries, keys, i, j)
        old = top[i]
        new = jnp.maximum(old, s.max(-1))
        p = jnp.exp2((s - new[..., None]) * scale)
        shrink = jnp.exp2(
            (old - new) * scale
        )  # 0 at a row's first visible key: it forgets hidden blocks
        update = jnp.einsum(
            "bkqs,bksh->bkqh", p.astype(v.dtype), v[j], preferred_element_type=jnp.float32
        )
        return (
            out.at[i].set(out[i] * shrink[..., None] + update),
            top.at[i].set(new),
            total.at[i].set(total[i] * shrink + p.sum(-1)),
        )

    return _fold(step, state, work)


def softmax(state: tuple, q: Array, dtype: Any, size: int) -> tuple[Array, Array]:
    """(weighted mean of the values, joined; base-2 log-sum-exp of the scores) once every pair was visited."""
    out, top, total = state
    out = join((out / total[..., None]).astype(dtype), size)
    # Cast here and now: else XLA keeps the float32 values and casts at every use.
    return jax.lax.optimization_barrier(out), top * _to_base_2(q) + jnp.log2(total)


def named(out: Array, log_sum: Array) -> tuple[Array, Array]:
    """Both by the name under which rematerialisation can keep them, so that attention is not done twice."""
    return checkpoint_name(out, SAVED), checkpoint_name(log_sum, SAVED)


def add_gradients(
    state: tuple,
    q: tuple,
    k: tuple,
    v: Array,
    saved: tuple,
    queries: Blocks,
    keys: Blocks,
    work: Work,
) -> tuple:
    """(dq, dk, dv), float32, after the pairs of `work`; saved: gradient of the output, its product with it, log-sum."""
    grad, inner, log_sum = saved
    # Products over the queries want them as columns: with rows, CPUs take three times as long.
    scale = _to_base_2(q[0])
    columns, grad_columns = tuple(x.swapaxes(-1, -2) for x in q), grad.swapaxes(-1, -2)

    def step(state: tuple, tile: Tile, i: Array, j: Array) -> tuple:
        dq, dk, dv = state
        q_i, k_j, g_i = q[tile.piece][i], k[tile.piece][j], grad[i]
        s = tile.scores(q_i, k_j, queries, keys, i, j)
        p = jnp.exp2(
            s * scale - log_sum[i][..., None]
        )  # hidden pairs: exp2(-1e30) = 0; padding has no gradient
        dp = jnp.einsum("bkqh,bksh->bkqs", g_i, v[j], preferred_element_type=jnp.float32)
        ds = (p * (dp - inner[i][..., None]) * q_i.shape[-1] ** -0.5).astype(q_i.dtype)
        by_key = partial(jnp.einsum, "bkhq,bkqs->bkhs", preferred_element_type=jnp.float32)
        dv_j, dk_j = (
            by_key(grad_columns[i], p.astype(g_i.dtype)),
            by_key(columns[tile.piece][i], ds),
        )
        dq_i = jnp.einsum("bkqs,bksh->bkqh", ds, k_j, preferred_element_type=jnp.float32)
        dq = tuple(x.at[i].add(dq_i) if n == tile.piece else x for n, x in enumerate(dq))
        dk = tuple(x.at[j].add(dk_j) if n == tile.piece else x for n, x in enumerate(dk))
        return dq, dk, dv.at[j].add(dv_j)

    def turned(state: tuple) -> tuple:
        dq, dk, dv = state
        return dq, tuple(x.swapaxes(-1, -2) for x in dk), dv.swapaxes(-1, -2)

    return turned(_fold(step, turned(state), work))


def no_gradients(tree: Any) -> Any:
    """Float32 zeros in the shapes of a tree."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)
