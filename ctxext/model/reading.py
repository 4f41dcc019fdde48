"""Reading a long text in parts: layer by layer, and each layer in chunks of tokens.

One program that read a text of 16k tokens in one go would be silent for minutes, and deaf to
Ctrl-C. Between parts, a second or so each, progress is told (`progress`) and Ctrl-C is answered. A
layer reads all chunks before the next layer begins, so that at any time only the keys and values of
one layer are needed, as in one go. Nothing about a method changes: frequencies are those of the
whole text, and every mask and position counts from its beginning.

A kernel that takes whole sequences only (`KernelSpec.reads_chunks`: splash, cudnn, dense) reads
layer by layer without chunks. Over several devices a text is read in one go: ring attention has
cut it already, and its parts are on all of them at once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctxext import progress
from ctxext.attention import make_attention
from ctxext.attention.cache import Cache, caches_rotated, empty_cache, prefill, prefill_chunk
from ctxext.attention.devices import platform_of
from ctxext.attention.kernels import TABLE, choose
from ctxext.attention.request import requests_of
from ctxext.model.decoder import LayerPlace, Params, bind
from ctxext.model.operations import layer_operations, projection_operations, step_operations
from ctxext.model.segments import layers_apart, segment_sizes
from ctxext.model.setup import ModelSetup
from ctxext.rope import Float32Rotation, Rotation

PART = {"cpu": 5e10}
"""Floating-point operations of a part, at most: less than a second of two CPU cores. Of a model of
135 M parameters that is a chunk of 512 tokens, with which reading takes no longer than in one go;
with chunks of 2,048 it took a seventh longer."""
PART_OF_ACCELERATOR = 5e13
"""The same for other platforms, which do so many in about a second."""
WORTH_PARTS = 4
"""A text that takes no more than so many parts is read in one go."""
SMALLEST_CHUNK = 512
"""Tokens of a chunk, at least: with fewer, products are slower."""


def part_operations() -> float:
    """Floating-point operations after which progress is told and Ctrl-C is answered."""
    return PART.get(platform_of(None), PART_OF_ACCELERATOR)


def chunk_tokens(setup: ModelSetup, rows: int, length: int) -> int:
    """Tokens per chunk in which rows of a padded length are read; 0: all layers in one go.

    The length itself: layer by layer, without chunks.
    """
    if setup.mesh.build().size > 1:
        return 0
    most = part_operations()
    if rows * reading_operations(setup, length) <= WORTH_PARTS * most:
        return 0
    if not reads_chunks(setup, length):
        return length

    def of_part(tokens: int) -> float:
        """Operations of the most expensive chunk of a layer, and of the logits of a chunk."""
        layers = {kind: n for n, kind in enumerate(setup.config.layer_kinds)}.values()
        of_layers = [
            layer_operations(setup.config, setup.attention, n, length - tokens, length)
            for n in layers
        ]
        return rows * max(*of_layers, projection_operations(setup.config, tokens))

    # The largest power of two that divides the length, so that blocks of keys divide a chunk.
    largest = length & -length
    if largest < SMALLEST_CHUNK or of_part(length) <= most:
        return length
    tokens = largest
    while tokens // 2 >= SMALLEST_CHUNK and of_part(tokens) > most:
        tokens //= 2
    return tokens


def reads_chunks(setup: ModelSetup, length: int) -> bool:
    """Whether the kernel of every layer can read a sequence of this length in chunks."""
    layers = setup.config.layers

    config = setup.config
    requests = [
        request
        for kind in range(len(layers.kinds))
        for request in requests_of(
            setup.attention,
            layers,
            kind,
            (config.num_attention_heads, config.num_key_value_heads),
            platform=platform_of(None),
            seq_len=length,
            dtype=setup.dtype,
            packed=False,
        )
    ]
    return all(TABLE[choose(setup.kernel, request)].reads_chunks for request in requests)


def reading_operations(setup: ModelSetup, length: int) -> float:
    """Operations of all layers for one text of so many tokens."""
    config = setup.config
    return sum(
        layer_operations(config, setup.attention, n, 0, length)
        for n in range(config.num_hidden_layers)
    )


def steps_at_once(setup: ModelSetup, rows: int, slots: int) -> int:
    """Steps of decoding between which progress is told and Ctrl-C is answered."""
    return max(1, int(part_operations() / step_operations(setup.config, rows, slots)))


class Reader:
    """Reads right-padded rows [B, T] in chunks of C tokens, and tells `meter` of every part.

    The chunks of a text are a list; those in which all rows are padding are not read.
    """

    def __init__(
        self,
        params: Params,
        rotation: Rotation | Float32Rotation,
        meter: progress.Meter,
        *,
        setup: ModelSetup,
        chunk: int,
        num_chunks: int,
    ) -> None:
        self._params = layers_apart(params)
        self._outer = {name: leaf for name, leaf in self._params.items() if name != "segments"}
        self._rotation = rotation
        self._meter = meter
        self._setup = setup
        self._chunk = chunk
        self._num_chunks = num_chunks

    def cut(self, tokens: Int[Any, "b t"], longest: int) -> list[Any]:
        """The chunks of tokens that hold any of the first `longest`."""
        starts = range(0, longest, self._chunk)
        return [tokens[:, start : start + self._chunk] for start in starts]

    def hidden(
        self, chunks: list[Any], caches: tuple[Cache, ...] | None, *, rotated: bool
    ) -> tuple[list[jax.Array], tuple[Cache, ...] | None]:
        """The last layer's output [B, C, D] of every chunk, before the final norm; filled caches.

        caches: one per segment, which are donated; None if the text is not continued. rotated: see
        `cache.caches_rotated`.
        """
        setup = self._setup
        # Placed where the layers are, as the outputs of layers are: otherwise the first layer would
        # be a program of its own.
        place = next(iter(jax.tree.leaves(self._params["segments"])[0].devices()))
        xs = [jax.device_put(_embed(self._outer, tokens, setup=setup), place) for tokens in chunks]
        caches = jax.device_put(caches, place)
        cache = None
        if caches is None and self._num_chunks > 1:
            # One layer's, used by all of them: a slot is written before it is read.
            config = setup.config
            slots = self._chunk * self._num_chunks
            shape = (len(chunks[0]), config.num_key_value_heads, slots, config.head_dim)
            cache = jax.device_put(empty_cache(1, shape, setup.dtype), place)
        filled = []
        number = 0
        for i, size in enumerate(segment_sizes(self._params)):
            if caches is not None:
                cache = caches[i]
            segment = self._params["segments"][str(i)]
            for layer in range(size):
                of_segment = layer if size > 1 else None
                of_cache = of_segment if caches is not None else None
                xs, cache = self._layer(xs, cache, segment, (of_segment, of_cache), number, rotated)
                number += 1
            filled.append(cache)
        return xs, None if caches is None else tuple(filled)

    def _layer(
        self,
        xs: list[jax.Array],
        cache: Cache | None,
        segment: Any,
        layer: tuple[int | None, int | None],
        number: int,
        rotated: bool,
    ) -> tuple[list[jax.Array], Cache | None]:
        """The outputs of layer `number` of the model; layer: its number in segment and cache."""
        setup = self._setup
        config = setup.config
        out = []
        for n, x in enumerate(xs):
            x, cache = _chunk_of_layer(
                self._outer,
                segment,
                (*layer, number),
                n,
                x,
                cache,
                self._rotation,
                setup=setup,
                kind=config.layers.kinds.index(config.layer_kinds[number]),
                num_chunks=self._num_chunks,
                rotated=rotated,
            )
            # What is told is done, and nothing is queued when Ctrl-C comes.
            out.append(jax.block_until_ready(x))
            first = n * self._chunk
            operations = layer_operations(
                config, setup.attention, number, first, first + self._chunk
            )
            self._meter.add(len(x) * operations)
        return out, cache

    def measured(
        self, xs: list[jax.Array], targets: list[Any], measure: Callable[..., jax.Array]
    ) -> np.ndarray:
        """`measure` of the predictions of `hidden`, [B, C ..., ...]."""
        values = []
        for x, of_chunk in zip(xs, targets, strict=True):
            value = _measure(self._outer, x, of_chunk, measure=measure, setup=self._setup)
            values.append(np.asarray(value))
            tokens = len(x) * self._chunk
            self._meter.add(projection_operations(self._setup.config, tokens))
        return np.concatenate(values, 1)

    def last(self, xs: list[jax.Array], lengths: np.ndarray) -> Float[Array, "b 1 d"]:
        """The output of `hidden` at the last token of each row."""
        numbers, places = np.divmod(lengths - 1, self._chunk)
        rows = [
            xs[n][row, place] for row, (n, place) in enumerate(zip(numbers, places, strict=True))
        ]
        return jnp.stack(rows)[:, None]


@functools.partial(jax.jit, static_argnames="setup")
def _embed(outer: Params, tokens: Any, *, setup: ModelSetup) -> jax.Array:
    return outer["embed_tokens"]["embedding"][tokens].astype(setup.dtype)


@functools.partial(
    jax.jit,
    static_argnames=("setup", "kind", "num_chunks", "rotated"),
    donate_argnames=("x", "cache"),
)
def _chunk_of_layer(
    outer: Params,
    segment: Any,
    layer: tuple[Any, Any, Any],
    chunk: Any,
    x: Float[Array, "b c d"],
    cache: Cache | None,
    rotation: Rotation | Float32Rotation,
    *,
    setup: ModelSetup,
    kind: int,
    num_chunks: int,
    rotated: bool,
) -> tuple[jax.Array, Cache | None]:
    """The output of a layer for one chunk, and the cache with its keys and values.

    layer: its numbers in the segment, in the cache and in the model.
    """
    of_segment, of_cache, number = layer
    model = bind(setup.config, {**outer, "segments": {"0": segment}})
    B, C, _ = x.shape
    layers = setup.config.layers
    positions = jnp.broadcast_to(jnp.arange(C)[None], (B, C))
    if num_chunks > 1:
        attend = prefill_chunk(
            setup.attention,
            rotation,
            chunk,
            num_chunks=num_chunks,
            tokens=C,
            rotated=rotated,
            layers=layers,
        )
    elif cache is not None:
        attend = prefill(
            setup.attention, setup.kernel, rotation, positions, rotated=rotated, layers=layers
        )
    else:
        attend = make_attention(setup.attention, setup.kernel, rotation, positions, layers=layers)
    place = LayerPlace(of_cache, kind, number)
    return model.run_layer(x, attend, cache, of_segment, place)


@functools.partial(jax.jit, static_argnames=("setup", "measure"))
def _measure(
    outer: Params, x: Any, targets: Any, *, measure: Callable[..., jax.Array], setup: ModelSetup
) -> jax.Array:
    model = bind(setup.config, {**outer, "segments": {}})
    return measure(model.norm(x), model.output_kernel(), targets, setup.mesh)


def read_in_parts(
    params: Params,
    tokens: Int[Any, "b t"],
    targets: Int[Any, "b t"],
    rotation: Rotation | Float32Rotation,
    *,
    longest: int,
    chunk: int,
    measure: Callable[..., jax.Array],
    setup: ModelSetup,
) -> np.ndarray:
    """`measure` of the prediction of each of the first `longest` targets or more.

    chunk: see `chunk_tokens`. Equal to one reading of all tokens.
    """
    B, T = tokens.shape
    of_layers = reading_operations(setup, -(-longest // chunk) * chunk)
    total = B * (of_layers + projection_operations(setup.config, longest))
    reader = Reader(
        params, rotation, progress.Meter(total), setup=setup, chunk=chunk, num_chunks=T // chunk
    )
    rotated = caches_rotated(setup.attention, re_rotated=False)
    xs, _ = reader.hidden(reader.cut(tokens, longest), None, rotated=rotated)
    return reader.measured(xs, reader.cut(targets, longest), measure)
