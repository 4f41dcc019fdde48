"""The online softmax over block pairs, forward and backward: the core of `blocked` and `ring`.

Tokens come in blocks, and only pairs of a query block and a key block of which something is
visible are visited, one after the other (FlashAttention, arXiv 2205.14135). The backward pass
recomputes the scores from the saved log-sum-exp.

Shapes: B batch, T tokens, K key-value heads, G queries per key head, H head_dim, M blocks of C
tokens, P block pairs. Blocked arrays are [M, B, K, C, H], those of queries [M, B, K, G * C, H].
Cut into S parts of r rows and h heads (`parts`), the same arrays are [M, S, r, h, C, H].
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from ctxext.attention.bias import linear_bias
from ctxext.attention.dense import MASK_VALUE
from ctxext.attention.devices import GPU
from ctxext.attention.layers import LayerMask, PerKind, visible_in
from ctxext.attention.parts import WHOLE, Parts
from ctxext.attention.pieces import Mask

SAVED_NAME = "attention"
"""The name by which rematerialisation can keep the output of attention and its log-sum-exp."""

LOG2E = float(np.log2(np.e))
"""exp(x) = exp2(x log2 e), and exp2 is the cheaper one."""


class Blocks(NamedTuple):
    """Where blocks are: the token index of each one's first token [M], and segments [M, B, C].

    Segments are None unless rows are packed. first: the token index of the first token of each
    token's document [M, B, C], None unless a mask needs it. positions: the mapped ones of each
    piece [M, B, C], empty unless scores are biased by them.
    """

    start: Array
    segments: Array | None
    first: Array | None = None
    positions: tuple[Array, ...] = ()

    def one(self, number: Any, part: Any, parts: Parts) -> "Blocks":
        """One of the blocks in the rows of a part: every field without its first axis."""
        start, *of_tokens = self
        row_part = part // parts.heads
        return Blocks(
            start[number],
            *jax.tree.map(lambda x: parts.cut_rows(x[number])[row_part], of_tokens),
        )


class LayerInputs(NamedTuple):
    """The inputs that differ between layers of one program; empty if the layers are alike.

    Both fields may be traced.
    """

    kind: Any = None
    """The number of the layer's kind, which chooses the mask of a `PerKind`."""
    slopes: Array | None = None
    """The slopes of the bias [P, K, G], for each of P pieces and every query head."""

    def one(self, part: Any, parts: Parts) -> "LayerInputs":
        """The same for the heads of a part."""
        if self.slopes is None:
            return self
        P, _, G = self.slopes.shape
        of_parts = self.slopes.reshape(P, parts.heads, -1, G)
        return LayerInputs(self.kind, of_parts[:, part % parts.heads])


ALL_ALIKE = LayerInputs()


@runtime_checkable
class NumberedBlocks(Protocol):
    """Blocks [B, K, C, H] of keys or values by number: an array of them, or what reads each."""

    def __getitem__(self, number: Any, /) -> Array: ...


class Pairs(NamedTuple):
    """Block pairs [P, 2] of (query block, key block), of which the first `count` are visited.

    Of packed rows, [R, P, 2] and [R]: those of each of the R parts of the rows.
    """

    pairs: Any
    count: Any

    def of_part(self, part: Any, parts: Parts) -> "Pairs":
        """The pairs [P, 2] that a part of rows and heads visits."""
        if self.pairs.ndim == 2:
            return self
        row_part = part // parts.heads
        return Pairs(self.pairs[row_part], self.count[row_part])


@dataclasses.dataclass(frozen=True)
class Tile:
    """How the scores of some block pairs of a piece are computed."""

    piece: int
    """The number of the piece."""
    mask: LayerMask | None
    """Its mask; None if every pair of tokens in these blocks is visible."""
    size: int
    """C, tokens per block."""
    mixed: bool = True
    """The tokens may be of different segments, which then have to be compared."""

    def scores(
        self, q: Array, k: Array, query: Blocks, key: Blocks, layer: LayerInputs = ALL_ALIKE
    ) -> Array:
        """Products q k of a block pair, float32 [B, K, G * C, C]; hidden ones MASK_VALUE.

        query, key: where these two blocks are, see `Blocks.one`. A bias is added as what it is
        before the scaling.
        """
        products = jnp.einsum("bkqh,bksh->bkqs", q, k, preferred_element_type=jnp.float32)
        if layer.slopes is not None:
            slopes = layer.slopes[self.piece] * q.shape[-1] ** 0.5
            bias = linear_bias(slopes, query.positions[self.piece], key.positions[self.piece])
            products = products + bias.reshape(products.shape)
        visible = None
        if self.mask is not None:
            offsets = jnp.arange(self.size)
            query_index = query.start + offsets[None, :, None]
            key_index = key.start + offsets[None, None, :]
            if query.first is not None and not self.mask.by_distance:
                # Keys of other documents are hidden below.
                first = query.first[:, :, None]
                query_index = query_index - first
                key_index = key_index - first
            visible = visible_in(self.mask, layer.kind, query_index, key_index)
        if self.mixed and query.segments is not None and key.segments is not None:
            same_segment = query.segments[:, :, None] == key.segments[:, None, :]
            visible = same_segment if visible is None else visible & same_segment
        if visible is None:
            return products
        B, K, GC, C = products.shape
        grouped = products.reshape(B, K, GC // C, C, C)
        return jnp.where(visible[:, None, None], grouped, MASK_VALUE).reshape(products.shape)


Work = Sequence[tuple[Tile, Pairs]]
"""All block pairs to visit: of each piece first the fully visible ones, then the partly visible."""


LARGEST_BLOCK = 1024
"""The most tokens per block on any platform."""


def largest_block(platform: str, rows_times_heads: int) -> int:
    """The most tokens per block on a platform, for so many rows x query heads per device.

    512, and on GPU 1024, where a pair of blocks costs about 30 kernel launches however small it
    is, or less if its scores would take more than 256 MiB. The figures for GPU are arithmetic on
    the compiled program: none was measured.
    """
    if platform not in GPU:
        return 512
    return next(
        (size for size in (LARGEST_BLOCK, 512, 256) if rows_times_heads * size**2 <= 2**26), 128
    )


def visible_pairs(
    mask: Mask, num_blocks: int, size: int, *, packed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Block pairs [P, 2] whose every pair of tokens is visible, and those where only some are.

    packed: documents begin anywhere in the rows, so that all pairs are partly visible unless the
    mask goes by distances.
    """
    full: list[tuple[int, int]] = []
    partly: list[tuple[int, int]] = []
    blocks = [range(i * size, (i + 1) * size) for i in range(num_blocks)]
    moves = packed and not mask.by_distance
    for i, query in enumerate(blocks):
        for j, key in enumerate(blocks[: i + 1]):
            any_visible, all_visible = (True, False) if moves else mask.block(query, key)
            if any_visible:
                (full if all_visible else partly).append((i, j))
    return np.array(full, np.int32).reshape(-1, 2), np.array(partly, np.int32).reshape(-1, 2)


def padded(tables: Sequence[np.ndarray]) -> np.ndarray:
    """Block pairs [..., P, 2] with several P as one array, filled up with (0, 0)."""
    longest = max(table.shape[-2] for table in tables)

    def fill(table: np.ndarray) -> np.ndarray:
        widths = [(0, 0)] * (table.ndim - 2) + [(0, longest - table.shape[-2]), (0, 0)]
        return np.pad(table, widths)

    return np.stack([fill(table) for table in tables])


def pairs_in(
    mask: LayerMask, kind: Any, num_blocks: int, size: int, *, packed: bool = False
) -> tuple[Pairs, Pairs]:
    """`visible_pairs`, for a layer of this kind where the mask is one per kind."""
    if not isinstance(mask, PerKind):
        full, partly = visible_pairs(mask, num_blocks, size, packed=packed)
        return Pairs(jnp.asarray(full), len(full)), Pairs(jnp.asarray(partly), len(partly))
    of_kinds = [visible_pairs(each, num_blocks, size, packed=packed) for each in mask.masks]

    def choose(tables: Sequence[np.ndarray]) -> Pairs:
        counts = jnp.asarray([len(table) for table in tables])
        return Pairs(jnp.asarray(padded(tables))[kind], counts[kind])

    full, partly = zip(*of_kinds, strict=True)
    return choose(full), choose(partly)


def pairs_of_chunk(pairs: np.ndarray, chunk: Any, num_chunks: int, per_chunk: int) -> Pairs:
    """The block pairs whose query block is in a chunk of `per_chunk` blocks, counted from there.

    chunk: its number, which may be traced.
    """
    of_chunks = [pairs[pairs[:, 0] // per_chunk == n] for n in range(num_chunks)]
    tables = [of_one - [n * per_chunk, 0] for n, of_one in enumerate(of_chunks)]
    counts = jnp.asarray([len(table) for table in tables])
    return Pairs(jnp.asarray(padded(tables), jnp.int32)[chunk], counts[chunk])


def within_segments(work: Work, queries: Blocks, keys: Blocks, parts: Parts = WHOLE) -> Work:
    """The work that the segments of packed rows leave, for each part of the rows.

    Block pairs without a common segment are not visited. Fully visible pairs inside a single
    segment need no comparison; all the others get the mask, and so need not be kept apart.
    """
    if queries.segments is None or keys.segments is None:
        return work
    first_query, last_query = _segment_range(queries.segments)
    first_key, last_key = _segment_range(keys.segments)
    remaining = []
    for (full_tile, full), (masked_tile, partly) in zip(work[::2], work[1::2], strict=True):
        pairs = jnp.concatenate([full.pairs, partly.pairs])
        index = jnp.arange(len(pairs))
        num_full = len(full.pairs)
        is_full = index < num_full
        visited = jnp.where(is_full, index < full.count, index - num_full < partly.count)

        low, high = first_query[pairs[:, 0]], last_query[pairs[:, 0]]
        key_low, key_high = first_key[pairs[:, 1]], last_key[pairs[:, 1]]
        in_common = (low <= key_high) & (key_low <= high)
        one_segment = (low == high) & (key_low == key_high) & (low == key_low)
        # [P, B] -> [R, P]
        by_part = (len(pairs), parts.rows, first_query.shape[1] // parts.rows)
        in_common = in_common.reshape(by_part).any(-1).T & visited[None]
        inside = one_segment.reshape(by_part).all(-1).T & (visited & is_full)[None]

        unmixed_tile = dataclasses.replace(full_tile, mixed=False)
        remaining.append((unmixed_tile, _chosen_first(pairs[:num_full], inside[:, :num_full])))
        remaining.append((masked_tile, _chosen_first(pairs, in_common & ~inside)))
    return remaining


def _chosen_first(pairs: Array, chosen: Array) -> Pairs:
    return Pairs(pairs[jnp.argsort(~chosen, axis=1, stable=True)], chosen.sum(1))


def _segment_range(segments: Array) -> tuple[Array, Array]:
    """The first and last segment of each block, [M, B] each; padding comes last."""
    ids = jnp.where(segments > 0, segments, jnp.iinfo(jnp.int32).max + segments)
    return ids.min(-1), ids.max(-1)


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


def split_slopes(slopes: Array, groups: int) -> Array:
    """[P, K * G] -> [P, K, G]."""
    return slopes.reshape(len(slopes), -1, groups)


def split_tokens(x: Array | None, size: int) -> Array | None:
    """[B, M * C] -> [M, B, C]."""
    if x is None:
        return None
    return x.reshape(x.shape[0], -1, size).transpose(1, 0, 2)


def empty_softmax(q: Array) -> tuple[Array, Array, Array]:
    """The state before any block pair: weighted values, running maxima, sums of weights."""
    return (
        jnp.zeros(q.shape, jnp.float32),
        jnp.full(q.shape[:-1], MASK_VALUE, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
    )


def accumulate_softmax(
    state: tuple,
    q: tuple,
    k: tuple[NumberedBlocks, ...],
    v: NumberedBlocks,
    queries: Blocks,
    keys: Blocks,
    work: Work,
    layer: LayerInputs = ALL_ALIKE,
    parts: Parts = WHOLE,
) -> tuple:
    """The softmax state with the block pairs of `work` taken in, part after part."""
    scale = _base_2_scale(q[0])
    cut_q = tuple(parts.cut(x) for x in q)
    key_block = tuple(_by_part(x, parts) for x in k)
    value_block = _by_part(v, parts)

    def step(state: tuple, tile: Tile, i: Array, j: Array, part: Any) -> tuple:
        values, maxima, sums = state
        scores = tile.scores(
            cut_q[tile.piece][i, part],
            key_block[tile.piece](j, part),
            queries.one(i, part, parts),
            keys.one(j, part, parts),
            layer.one(part, parts),
        )
        old_max = maxima[i, part]
        new_max = jnp.maximum(old_max, scores.max(-1))
        values_j = value_block(j, part)
        weights = jnp.exp2((scores - new_max[..., None]) * scale)
        # At a row's first visible key this is 0, so that it forgets the hidden blocks before.
        shrink = jnp.exp2((old_max - new_max) * scale)
        update = jnp.einsum(
            "bkqs,bksh->bkqh",
            weights.astype(values_j.dtype),
            values_j,
            preferred_element_type=jnp.float32,
        )
        return (
            values.at[i, part].set(values[i, part] * shrink[..., None] + update),
            maxima.at[i, part].set(new_max),
            sums.at[i, part].set(sums[i, part] * shrink + weights.sum(-1)),
        )

    return _fold(step, state, work, parts)


def finish_softmax(state: tuple, q: Array, dtype: Any, size: int) -> tuple[Array, Array]:
    """The output [B, T, N, H] and the base-2 log-sum-exp (lse) of the scores [M, B, K, G * C]."""
    values, maxima, sums = state
    out = join((values / sums[..., None]).astype(dtype), size)
    # Cast here and now; otherwise XLA keeps the float32 values and casts at every use.
    out = jax.lax.optimization_barrier(out)
    lse = maxima * _base_2_scale(q) + jnp.log2(sums)
    return out, lse


def named(out: Array, lse: Array) -> tuple[Array, Array]:
    """Both under SAVED_NAME, so that rematerialisation can keep them instead of recomputing."""
    return checkpoint_name(out, SAVED_NAME), checkpoint_name(lse, SAVED_NAME)


def output_delta(out: Array, grad: Array) -> Array:
    """delta = sum of output x gradient per query and head, float32, of the backward pass."""
    return (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)


def accumulate_gradients(
    state: tuple,
    q: tuple,
    k: tuple,
    v: Array,
    saved: tuple,
    queries: Blocks,
    keys: Blocks,
    work: Work,
    layer: LayerInputs = ALL_ALIKE,
    parts: Parts = WHOLE,
) -> tuple:
    """(dq, dk, dv), float32, with the block pairs of `work` taken in.

    saved: the gradient of the output, `output_delta`, and the log-sum-exp.
    """
    scale = _base_2_scale(q[0])
    # Products that sum over the queries want them as columns: with rows, CPUs take three times as
    # long. dk and dv are therefore transposed while they grow.
    cut_q = tuple(parts.cut(x) for x in q)
    cut_k = tuple(parts.cut(x) for x in k)
    cut_v = parts.cut(v)
    grad, delta, lse = (parts.cut(x) for x in saved)
    q_columns = tuple(x.swapaxes(-1, -2) for x in cut_q)
    grad_columns = grad.swapaxes(-1, -2)

    def step(state: tuple, tile: Tile, i: Array, j: Array, part: Any) -> tuple:
        dq, dk, dv = state
        q_i, k_j = cut_q[tile.piece][i, part], cut_k[tile.piece][j, part]
        v_j, grad_i = cut_v[j, part], grad[i, part]
        query, key = queries.one(i, part, parts), keys.one(j, part, parts)
        scores = tile.scores(q_i, k_j, query, key, layer.one(part, parts))
        # Hidden pairs: exp2(-1e30) = 0. Padding has no gradient.
        weights = jnp.exp2(scores * scale - lse[i, part][..., None])
        d_weights = jnp.einsum("bkqh,bksh->bkqs", grad_i, v_j, preferred_element_type=jnp.float32)
        d_scores = weights * (d_weights - delta[i, part][..., None]) * q_i.shape[-1] ** -0.5
        d_scores = d_scores.astype(q_i.dtype)
        over_queries = partial(jnp.einsum, "bkhq,bkqs->bkhs", preferred_element_type=jnp.float32)
        dv_j = over_queries(grad_columns[i, part], weights.astype(grad_i.dtype))
        dk_j = over_queries(q_columns[tile.piece][i, part], d_scores)
        dq_i = jnp.einsum("bkqs,bksh->bkqh", d_scores, k_j, preferred_element_type=jnp.float32)

        def add(grown: tuple, place: Any, new: Array) -> tuple:
            return tuple(
                x.at[place, part].add(new) if n == tile.piece else x for n, x in enumerate(grown)
            )

        return add(dq, i, dq_i), add(dk, j, dk_j), dv.at[j, part].add(dv_j)

    def transposed(state: tuple) -> tuple:
        dq, dk, dv = state
        return dq, tuple(x.swapaxes(-1, -2) for x in dk), dv.swapaxes(-1, -2)

    return transposed(_fold(step, transposed(state), work, parts))


def zero_gradients(tree: Any) -> Any:
    """Float32 zeros in the shapes of a tree."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)


def _base_2_scale(q: Array) -> float:
    """1 / sqrt(H) x log2 e, which makes products q k exponents of 2.

    It is applied with the exponential: a pass over the queries for it costs a tenth.
    """
    return q.shape[-1] ** -0.5 * LOG2E


def _by_part(blocks: NumberedBlocks, parts: Parts) -> Callable[[Any, Any], Array]:
    """Blocks of keys or values by their number and that of the part, [r, h, C, H] each."""
    if isinstance(blocks, jax.Array):
        cut = parts.cut(blocks)
        return lambda number, part: cut[number, part]
    return lambda number, part: parts.cut(blocks[number], axis=0)[part]


def _fold(step: Callable[..., Any], state: Any, work: Work, parts: Parts) -> Any:
    """Fold `step(state, tile, i, j, part)` over the block pairs (i, j) of all pieces and parts.

    state: blocked arrays; step sees them cut by `parts`.
    """
    shapes = jax.tree.map(lambda x: x.shape, state)

    def take_part(part: Any, state: Any) -> Any:
        for tile, of_all in work:
            pairs, count = of_all.of_part(part, parts)
            if not pairs.shape[0]:
                continue

            def take_pair(n: Any, state: Any, tile: Tile = tile, pairs: Any = pairs) -> Any:
                return step(state, tile, pairs[n, 0], pairs[n, 1], part)

            state = _repeat(count, take_pair, state)
        return state

    state = jax.tree.map(parts.cut, state)
    state = take_part(0, state) if parts == WHOLE else _repeat(parts.count, take_part, state)
    return jax.tree.map(lambda x, shape: x.reshape(shape), state, shapes)


def _repeat(times: Any, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """body(n, state) for n = 0, 1, .. times - 1.

    Not a scan: of a scan, rematerialisation would keep the masks of all pairs, because they depend
    on no parameter.
    """

    def is_unfinished(carry: tuple) -> Any:
        return carry[0] < times

    def again(carry: tuple) -> tuple:
        n, state = carry
        return n + 1, body(n, state)

    return jax.lax.while_loop(is_unfinished, again, (0, state))[1]
