"""Attention of sequences that are cut over devices: keys and values travel round a ring.

Ring attention (arXiv 2310.01889) over blocks: no device ever holds all keys. Its own backward pass
is a second trip, on which the scores are recomputed from the log-sum-exp over ALL keys, while
the gradients of keys and values travel with them.

A causal mask leaves the devices different amounts of work unless each holds an early and a late
part: of 2 S chunks, device d of S holds chunks d and 2 S - 1 - d ("zigzag"). Batches come in that
order; masks read the token index in the text.

Shapes: B batch, T tokens, N query heads, K key-value heads, G = N / K, H head_dim, M blocks of C
tokens on a device, P block pairs; see `tiles` for blocked arrays.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ctxext.attention import tiles
from ctxext.attention.bias import PositionBias
from ctxext.attention.devices import platform_of, rows_times_heads
from ctxext.attention.documents import first_tokens
from ctxext.attention.layers import LayerMask, PerKind
from ctxext.attention.pieces import Mask

SMALLEST = 32
"""Fewest tokens per block, unless chunks are shorter."""


def zigzag(seq_len: int, num_devices: int) -> np.ndarray:
    """The token index at every place, [T]: those of the first device, of the second, and so on."""
    chunks = np.arange(seq_len).reshape(2 * num_devices, -1)
    early = chunks[:num_devices]
    late = chunks[: num_devices - 1 : -1]
    return np.stack([early, late], 1).reshape(-1)


def block_size(chunk: int, largest: int) -> int:
    """Tokens per block, a divisor of the chunk's. Raises ValueError if all divisors are tiny."""
    size = next(size for size in range(min(largest, chunk), 0, -1) if chunk % size == 0)
    if size < min(SMALLEST, chunk):
        raise ValueError(
            f"chunks of {chunk} tokens cannot be cut into equal blocks of {SMALLEST} to {largest}; "
            f"make the length a multiple of {2 * SMALLEST} x mesh.seq"
        )
    return size


def length_multiple(seq_len: int, num_devices: int) -> int:
    """A number whose multiples from `seq_len` on, in tokens, can be cut over devices."""
    if num_devices == 1:
        return 1
    chunks = 2 * num_devices
    return chunks if seq_len <= chunks * SMALLEST else chunks * SMALLEST


def check_length(seq_len: int, num_devices: int, *, what: str) -> None:
    """Raise ValueError, calling them `what`, unless texts of this length can be cut over devices.

    The last word has a platform, whose blocks may be smaller than the largest of all.
    """
    if seq_len % (2 * num_devices):
        raise ValueError(
            f"{what} of {seq_len:,} tokens cannot be cut into two equal chunks for each of "
            f"mesh.seq {num_devices} devices; make the length a multiple of {2 * num_devices}, or "
            "choose another mesh.seq"
        )
    try:
        block_size(seq_len // (2 * num_devices), tiles.LARGEST_BLOCK)
    except ValueError as error:
        raise ValueError(f"{what} of {seq_len:,} tokens: {error}") from error


def ring(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[LayerMask],
    *,
    sharding: NamedSharding,
    segment_ids: Int[Array, "b t"] | None = None,
    kind: Any = None,
    bias: PositionBias | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` over one sequence in `zigzag` order, everything in that order.

    sharding: that of `values`; its second entry is the axis of the ring. Tokens of different
    segments never see each other. kind, bias: see `blocked`. Raises ValueError if
    T does not divide into chunks and blocks.
    """
    T = values.shape[1]
    S = sharding.mesh.shape[sharding.spec[1]]
    check_length(T, S, what="sequences")
    first = first_tokens(masks, zigzag(T, S)[None], segment_ids)
    tokens = _Tokens(segment_ids, first)
    slopes = None
    if bias is not None:
        tokens = _Tokens(segment_ids, first, bias.query_positions, bias.key_positions)
        slopes = bias.slopes
    layout = _Layout(tokens, kind, slopes)
    out: Array = _ring(tuple(queries), tuple(keys), values, layout, tuple(masks), sharding)
    return out


class _Tokens(NamedTuple):
    """Arrays with a value for each token, [B, T] in `zigzag` order; see `tiles.Blocks`."""

    segment_ids: Array | None
    first: Array | None
    query_positions: tuple[Array, ...] = ()
    key_positions: tuple[Array, ...] = ()

    def split(self, size: int) -> "_Tokens":
        """All [M, B, C]."""
        return jax.tree.map(lambda x: tiles.split_tokens(x, size), self)


class _Layout(NamedTuple):
    """The arrays of a call besides queries, keys and values; no gradient is asked of them."""

    tokens: _Tokens
    kind: Any
    """The number of the layer's kind, see `tiles.LayerInputs`."""
    slopes: Array | None
    """The slopes of the bias [P, N], for each of P pieces and every query head of the device."""

    def layer(self, groups: int) -> tiles.LayerInputs:
        """The inputs of the kernel that differ between layers, with the heads in groups."""
        slopes = None if self.slopes is None else tiles.split_slopes(self.slopes, groups)
        return tiles.LayerInputs(self.kind, slopes)


@functools.lru_cache(maxsize=64)
def work_table(
    mask: Mask, S: int, chunk: int, C: int, *, packed: bool = False
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The visits of every device at every step, to the fully and to the partly visible block pairs.

    Each is (local block pairs [S devices, S steps, P, 2], how many of the P they are [S, S]).
    """
    blocks_per_chunk = chunk // C
    num_blocks = 2 * S * blocks_per_chunk
    blocks_per_device = 2 * blocks_per_chunk
    place = np.argsort(zigzag(num_blocks, S))  # of every block, in the order of the devices
    tables = []
    for pairs in tiles.visible_pairs(mask, num_blocks, C, packed=packed):
        device, source = place[pairs].T // blocks_per_device
        local = place[pairs] % blocks_per_device
        step = (device - source) % S
        counts = np.zeros((S, S), np.int32)
        np.add.at(counts, (device, step), 1)
        table = np.zeros((S, S, counts.max(initial=0), 2), np.int32)
        for d in range(S):
            for r in range(S):
                table[d, r, : counts[d, r]] = local[(device == d) & (step == r)]
        tables.append((table, counts))
    return tuple(tables)


class _Trip:
    """One trip of keys and values round the ring: the common part of both passes.

    At step r of S, a device has the keys of the r-th device before it.
    """

    def __init__(
        self,
        masks: tuple[LayerMask, ...],
        sharding: NamedSharding,
        shape: tuple[int, ...],
        *,
        packed: bool,
        kind: Any = None,
    ) -> None:
        """masks: one per piece; shape: that of the queries [B, T, N, H]; kind: see `blocked`."""
        self.mesh = sharding.mesh
        self.axis = sharding.spec[1]
        self.S = self.mesh.shape[self.axis]
        self.chunk = shape[1] // (2 * self.S)
        heads = rows_times_heads(shape, sharding)
        self.C = block_size(self.chunk, tiles.largest_block(platform_of(sharding), heads))

        rows, seq, heads_axis = sharding.spec[:3]
        self.token_spec = PartitionSpec(rows, seq)
        self.head_spec = PartitionSpec(rows, seq, heads_axis)
        self.lse_spec = PartitionSpec(seq, rows, heads_axis)  # of [M, B, K, G * C]
        # In the places of the arrays that they are for.
        specs: list[Any] = [self.token_spec, PartitionSpec(), PartitionSpec(None, heads_axis)]
        self.layout_spec = _Layout(*specs)

        self.piece_tiles: list[tiles.Tile] = []
        self.tables: list[tuple[Any, Any]] = []
        for piece, mask in enumerate(masks):
            full, partly = self._tables_of(mask, kind, packed)
            self.piece_tiles += [tiles.Tile(piece, None, self.C), tiles.Tile(piece, mask, self.C)]
            self.tables += [full, partly]

    def _tables_of(self, mask: LayerMask, kind: Any, packed: bool) -> tuple[tuple[Any, Any], ...]:
        """`work_table`, for a layer of this kind where the mask is one per kind."""
        if not isinstance(mask, PerKind):
            return work_table(mask, self.S, self.chunk, self.C, packed=packed)
        of_kinds = [
            work_table(each, self.S, self.chunk, self.C, packed=packed) for each in mask.masks
        ]
        chosen = []
        for tables in zip(*of_kinds, strict=True):  # the fully, then the partly visible pairs
            pairs = tiles.padded([pairs for pairs, _ in tables])
            counts = np.stack([counts for _, counts in tables])
            chosen.append((jnp.asarray(pairs)[kind], jnp.asarray(counts)[kind]))
        return tuple(chosen)

    def run(self, body: Any, arguments: tuple, in_specs: tuple, out_specs: Any) -> Any:
        """`body(own_tables, *arguments)` on every device, with its own part of the work tables."""
        tables = [(jnp.asarray(pairs), jnp.asarray(counts)) for pairs, counts in self.tables]

        def local(tables: Any, *arguments: Any) -> Any:
            return body(jax.tree.map(lambda x: x[0], tables), *arguments)

        table_specs = jax.tree.map(lambda _: PartitionSpec(self.axis), tables)
        mapped = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=(table_specs, *in_specs),
            out_specs=out_specs,
            check_vma=False,
        )
        return mapped(tables, *arguments)

    def split(self, q: tuple, k: tuple, v: Array) -> tuple[tuple, tuple, Array]:
        """Queries, keys and values in blocks."""
        groups = q[0].shape[2] // v.shape[2]
        return (
            tuple(tiles.split(x, self.C, groups) for x in q),
            tuple(tiles.split(x, self.C, 1) for x in k),
            tiles.split(v, self.C, 1),
        )

    def blocks(
        self,
        device: Array,
        segments: Array | None,
        positions: tuple[Array, ...],
        first: Array | None = None,
    ) -> tiles.Blocks:
        """Where the blocks of a device are: first those of its early, then of its late chunk."""
        offsets = jnp.arange(0, self.chunk, self.C)
        early = device * self.chunk + offsets
        late = (2 * self.S - 1 - device) * self.chunk + offsets
        return tiles.Blocks(jnp.concatenate([early, late]), segments, first, positions)

    def work(
        self, own_tables: Any, r: Array, queries: tiles.Blocks, keys: tiles.Blocks
    ) -> tiles.Work:
        """The block pairs that this device visits at step r."""
        work = [
            (tile, tiles.Pairs(pairs[r], counts[r]))
            for tile, (pairs, counts) in zip(self.piece_tiles, own_tables, strict=True)
        ]
        return tiles.within_segments(work, queries, keys)

    def fold(self, step: Any, staying: Any, travelling: Any) -> tuple[Any, Any]:
        """Fold `staying, travelling = step(r, staying, travelling)` over all steps.

        After each step, what travels is handed on; after the last one it is back where it started.
        """
        onward = [(d, (d + 1) % self.S) for d in range(self.S)]

        def body(r: Array, state: tuple) -> tuple:
            staying, travelling = step(r, *state)
            return staying, jax.lax.ppermute(travelling, self.axis, onward)

        return jax.lax.fori_loop(0, self.S, body, (staying, travelling))


def _output_and_lse(
    q: tuple, k: tuple, v: Array, layout: _Layout, masks: tuple, sharding: NamedSharding
) -> tuple:
    packed = layout.tokens.segment_ids is not None
    trip = _Trip(masks, sharding, q[0].shape, packed=packed, kind=layout.kind)

    def local(tables: Any, q: tuple, k: tuple, v: Array, layout: _Layout) -> tuple[Array, Array]:
        device = jax.lax.axis_index(trip.axis)
        layer = layout.layer(q[0].shape[2] // v.shape[2])
        q, k, v = trip.split(q, k, v)
        tokens = layout.tokens.split(trip.C)
        queries = trip.blocks(device, tokens.segment_ids, tokens.query_positions, tokens.first)

        def step(r: Array, state: tuple, travelling: tuple) -> tuple:
            k, v, segments, positions = travelling
            keys = trip.blocks((device - r) % trip.S, segments, positions)
            work = trip.work(tables, r, queries, keys)
            state = tiles.accumulate_softmax(state, q, k, v, queries, keys, work, layer)
            return state, travelling

        travelling = (k, v, tokens.segment_ids, tokens.key_positions)
        state, _ = trip.fold(step, tiles.empty_softmax(q[0]), travelling)
        return tiles.finish_softmax(state, q[0], v.dtype, trip.C)

    return trip.run(
        local,
        (q, k, v, layout),
        in_specs=(trip.head_spec, trip.head_spec, trip.head_spec, trip.layout_spec),
        out_specs=(trip.head_spec, trip.lse_spec),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring(
    q: tuple, k: tuple, v: Array, layout: _Layout, masks: tuple, sharding: NamedSharding
) -> Array:
    return _output_and_lse(q, k, v, layout, masks, sharding)[0]


def _ring_forward(
    q: tuple, k: tuple, v: Array, layout: _Layout, masks: tuple, sharding: NamedSharding
) -> tuple:
    out, lse = tiles.named(*_output_and_lse(q, k, v, layout, masks, sharding))
    return out, (q, k, v, layout, out, lse)


def _ring_backward(masks: tuple, sharding: NamedSharding, saved: tuple, grad: Array) -> tuple:
    q, k, v, layout, out, lse = saved
    packed = layout.tokens.segment_ids is not None
    trip = _Trip(masks, sharding, q[0].shape, packed=packed, kind=layout.kind)

    def local(
        tables: Any,
        q: tuple,
        k: tuple,
        v: Array,
        layout: _Layout,
        out: Array,
        lse: Array,
        grad: Array,
    ):
        device = jax.lax.axis_index(trip.axis)
        groups = q[0].shape[2] // v.shape[2]
        dtype = v.dtype
        layer = layout.layer(groups)
        q, k, v = trip.split(q, k, v)
        out, grad = (tiles.split(x, trip.C, groups) for x in (out, grad))
        delta = tiles.output_delta(out, grad)
        tokens = layout.tokens.split(trip.C)
        queries = trip.blocks(device, tokens.segment_ids, tokens.query_positions, tokens.first)

        def step(r: Array, dq: tuple, travelling: tuple) -> tuple:
            (k, v, segments, positions), (dk, dv) = travelling
            keys = trip.blocks((device - r) % trip.S, segments, positions)
            work = trip.work(tables, r, queries, keys)
            dq, dk, dv = tiles.accumulate_gradients(
                (dq, dk, dv), q, k, v, (grad, delta, lse), queries, keys, work, layer
            )
            return dq, (travelling[0], (dk, dv))

        of_keys = k, v, tokens.segment_ids, tokens.key_positions
        travelling = of_keys, tiles.zero_gradients((k, v))
        dq, (_, (dk, dv)) = trip.fold(step, tiles.zero_gradients(q), travelling)
        return jax.tree.map(lambda x: tiles.join(x, trip.C).astype(dtype), (dq, dk, dv))

    per_head = trip.head_spec
    per_input = (per_head, per_head, per_head)
    dq, dk, dv = trip.run(
        local,
        (q, k, v, layout, out, lse, grad),
        in_specs=(*per_input, trip.layout_spec, per_head, trip.lse_spec, per_head),
        out_specs=per_input,
    )
    return dq, dk, dv, None


_ring.defvjp(_ring_forward, _ring_backward)
