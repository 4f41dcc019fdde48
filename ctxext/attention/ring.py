"""Attention of sequences cut over devices: keys and values go round a ring, no device ever holds them all.

Ring attention (arXiv 2310.01889) over blocks, with its own backward pass: a second trip, on which the scores are
recomputed from the log-sum-exp over ALL keys while the gradients of keys and values travel with them. A causal mask
leaves the devices different amounts of work unless each holds an early and a late part: of 2S chunks, device d of S
holds chunks d and 2S - 1 - d ("zigzag"). Batches come in that order; masks speak of the index before.
Shapes: B batch, T tokens, K key-value heads, G queries per key head, H head_dim, M blocks of C tokens on a device.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ctxext.attention import tiles
from ctxext.attention.accelerator import heads_of, largest_block, platform_of
from ctxext.attention.pieces import Mask

SMALLEST = 32
"""Fewest tokens of a block, but for chunks that are shorter."""


def zigzag(seq_len: int, devices: int) -> np.ndarray:
    """Token index of every place, [T]: what each of the devices holds, one after the other."""
    chunks = np.arange(seq_len).reshape(2 * devices, -1)
    return np.stack([chunks[:devices], chunks[: devices - 1 : -1]], 1).reshape(-1)


def block_size(chunk: int, largest: int) -> int:
    """Tokens per block, a divisor of the chunk's. Raises ValueError where there is only a tiny one."""
    size = next(size for size in range(min(largest, chunk), 0, -1) if chunk % size == 0)
    if size < min(SMALLEST, chunk):
        raise ValueError(
            f"chunks of {chunk} tokens cannot be cut into equal blocks of {SMALLEST} to {largest}; make "
            f"the length a multiple of {2 * SMALLEST} x mesh.seq"
        )
    return size


def ring(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[Mask],
    *,
    sharding: NamedSharding,
    segment_ids: Int[Array, "b t"] | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` over one sequence in `zigzag` order, everything in that order.

    sharding: that of `values`, its second entry being the axis of the ring. Tokens of different segments never see
    each other. Raises ValueError if T does not divide into chunks and blocks.
    """
    T, S = values.shape[1], sharding.mesh.shape[sharding.spec[1]]
    if T % (2 * S):
        raise ValueError(
            f"{T} tokens cannot be cut into two equal chunks for each of mesh.seq {S} devices; make the "
            f"length a multiple of {2 * S}"
        )
    out: Array = _ring(tuple(queries), tuple(keys), values, segment_ids, tuple(masks), sharding)
    return out


class _Trip:
    """What both trips share. Inside `shard_map`, on one device of S."""

    def __init__(
        self, masks: tuple[Mask, ...], sharding: NamedSharding, shape: tuple[int, ...]
    ) -> None:
        self.mesh, self.axis = sharding.mesh, sharding.spec[1]
        self.S = self.mesh.shape[self.axis]
        self.chunk = shape[1] // (2 * self.S)
        self.C = block_size(
            self.chunk, largest_block(platform_of(sharding), heads_of(shape, sharding))
        )
        self.masks = masks
        rows, seq, heads = sharding.spec[:3]
        self.tokens, self.heads = PartitionSpec(rows, seq), PartitionSpec(rows, seq, heads)
        self.sums = PartitionSpec(seq, rows, heads)  # of [M, B, K, G * C]
        self.table = [
            (tile, work_table(mask, self.S, self.chunk, self.C)[tile.mask is not None])
            for piece, mask in enumerate(masks)
            for tile in (tiles.Tile(piece, None, self.C), tiles.Tile(piece, mask, self.C))
        ]

    def run(self, body: Any, arguments: tuple, in_specs: tuple, out_specs: Any) -> Any:
        """`body(work, *arguments)` on every device; `work[r]` are its pairs with the keys of the r-th device before."""
        pairs = [(jnp.asarray(pairs), jnp.asarray(counts)) for _, (pairs, counts) in self.table]

        def local(pairs: Any, *arguments: Any) -> Any:
            return body(jax.tree.map(lambda x: x[0], pairs), *arguments)

        specs = jax.tree.map(lambda _: PartitionSpec(self.axis), pairs)
        mapped = jax.shard_map(
            local, mesh=self.mesh, in_specs=(specs, *in_specs), out_specs=out_specs, check_vma=False
        )
        return mapped(pairs, *arguments)

    def blocks(self, device: Array, segment_ids: Array | None) -> tiles.Blocks:
        """Where the blocks of a device lie."""
        early = jnp.arange(0, self.chunk, self.C)
        start = jnp.concatenate(
            [device * self.chunk + early, (2 * self.S - 1 - device) * self.chunk + early]
        )
        return tiles.Blocks(start, segment_ids)

    def work(self, pairs: Any, r: Array, queries: tiles.Blocks, keys: tiles.Blocks) -> tiles.Work:
        """This device's pairs at step r."""
        work = [
            (tile, tiles.Pairs(x[r], count[r]))
            for (tile, _), (x, count) in zip(self.table, pairs, strict=True)
        ]
        return tiles.within_segments(work, queries, keys)

    def round(self, step: Any, here: Any, travelling: Any) -> tuple[Any, Any]:
        """Fold `here, travelling = step(r, here, travelling)`, handing the second on each time, until it is home."""
        onward = [(d, (d + 1) % self.S) for d in range(self.S)]

        def body(r: Array, state: tuple) -> tuple:
            here, travelling = step(r, *state)
            return here, jax.lax.ppermute(travelling, self.axis, onward)

        return jax.lax.fori_loop(0, self.S, body, (here, travelling))


@functools.lru_cache(maxsize=64)
def work_table(mask: Mask, S: int, chunk: int, C: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For pairs that are wholly and partly visible: local block pairs [S devices, S steps, P, 2] and how many."""
    h = chunk // C
    place = np.argsort(zigzag(2 * S * h, S))  # of every block in the order of the devices
    made = []
    for pairs in tiles.visible_pairs(mask, 2 * S * h, C):
        (device, source), local = place[pairs].T // (2 * h), place[pairs] % (2 * h)
        step = (device - source) % S
        counts = np.zeros((S, S), np.int32)
        np.add.at(counts, (device, step), 1)
        table = np.zeros((S, S, counts.max(initial=0), 2), np.int32)
        for d in range(S):
            for r in range(S):
                table[d, r, : counts[d, r]] = local[(device == d) & (step == r)]
        made.append((table, counts))
    return tuple(made)


def _forward(
    q: tuple, k: tuple, v: Array, segment_ids: Any, masks: tuple, sharding: NamedSharding
) -> tuple:
    trip = _Trip(masks, sharding, q[0].shape)

    def local(pairs: Any, q: tuple, k: tuple, v: Array, segment_ids: Any) -> tuple[Array, Array]:
        me, groups = jax.lax.axis_index(trip.axis), q[0].shape[2] // v.shape[2]
        q, k, v = _split(trip, groups, q, k, v)
        segments = tiles.split_segments(segment_ids, trip.C)
        queries = trip.blocks(me, segments)

        def step(r: Array, state: tuple, travelling: tuple) -> tuple:
            k, v, segments = travelling
            keys = trip.blocks((me - r) % trip.S, segments)
            return tiles.add_values(
                state, q, k, v, queries, keys, trip.work(pairs, r, queries, keys)
            ), travelling

        state, _ = trip.round(step, tiles.no_softmax(q[0]), (k, v, segments))
        return tiles.softmax(state, q[0], v.dtype, trip.C)

    specs = (trip.heads, trip.heads, trip.heads, trip.tokens)
    return trip.run(local, (q, k, v, segment_ids), specs, (trip.heads, trip.sums))


def _split(trip: _Trip, groups: int, q: tuple, k: tuple, v: Array) -> tuple:
    C = trip.C
    return (
        tuple(tiles.split(x, C, groups) for x in q),
        tuple(tiles.split(x, C, 1) for x in k),
        tiles.split(v, C, 1),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring(
    q: tuple, k: tuple, v: Array, segment_ids: Any, masks: tuple, sharding: NamedSharding
) -> Array:
    return _forward(q, k, v, segment_ids, masks, sharding)[0]


def _ring_forward(
    q: tuple, k: tuple, v: Array, segment_ids: Any, masks: tuple, sharding: NamedSharding
) -> tuple:
    out, log_sum = tiles.named(*_forward(q, k, v, segment_ids, masks, sharding))
    return out, (q, k, v, segment_ids, out, log_sum)


def _ring_backward(masks: tuple, sharding: NamedSharding, saved: tuple, grad: Array) -> tuple:
    q, k, v, segment_ids, out, log_sum = saved
    trip = _Trip(masks, sharding, q[0].shape)

    def local(
        pairs: Any,
        q: tuple,
        k: tuple,
        v: Array,
        segment_ids: Any,
        out: Array,
        log_sum: Array,
        grad: Array,
    ):
        me, groups, dtype = jax.lax.axis_index(trip.axis), q[0].shape[2] // v.shape[2], v.dtype
        q, k, v = _split(trip, groups, q, k, v)
        out, grad = (tiles.split(x, trip.C, groups) for x in (out, grad))
        inner = (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
        segments = tiles.split_segments(segment_ids, trip.C)
        queries = trip.blocks(me, segments)

        def step(r: Array, dq: tuple, travelling: tuple) -> tuple:
            (k, v, segments), (dk, dv) = travelling
            keys = trip.blocks((me - r) % trip.S, segments)
            dq, dk, dv = tiles.add_gradients(
                (dq, dk, dv),
                q,
                k,
                v,
                (grad, inner, log_sum),
                queries,
                keys,
                trip.work(pairs, r, queries, keys),
            )
            return dq, ((k, v, segments), (dk, dv))

        travelling = (k, v, segments), tiles.no_gradients((k, v))
        dq, (_, (dk, dv)) = trip.round(step, tiles.no_gradients(q), travelling)
        return jax.tree.map(lambda x: tiles.join(x, trip.C).astype(dtype), (dq, dk, dv))

    specs = (trip.heads, trip.heads, trip.heads, trip.tokens, trip.heads, trip.sums, trip.heads)
    arguments = (q, k, v, segment_ids, out, log_sum, grad)
    dq, dk, dv = trip.run(local, arguments, specs, (trip.heads, trip.heads, trip.heads))
    return dq, dk, dv, None


_ring.defvjp(_ring_forward, _ring_backward)
