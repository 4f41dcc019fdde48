"""Attention of one new token of every continuation, over the decode cache.

Shapes: B prompts, C continuations of each, N new tokens of each; R rows, T queries, S slots, K
key-value heads, G queries per key head, H head_dim.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ctxext.attention import Attend, Attention
from ctxext.attention.bias import position_bias
from ctxext.attention.cache import Cache, read, write
from ctxext.attention.dense import masked_scores, weighted_values
from ctxext.attention.heads import HeadSet, over_heads
from ctxext.attention.layers import ALIKE, Kind, Layers
from ctxext.attention.length import pieces_at
from ctxext.attention.tables import Tables, key_tables, query_tables
from ctxext.rope import Float32Rotation, Rotation


class _Slots(NamedTuple):
    """Slots of the cache, and the queries that read them."""

    first: int
    count: int
    continuations: int
    """If 1, all queries of a prompt read the same slots. If more, each continuation is a row, which
    reads its own slots only."""
    query_index: Int[Array, "r t"]
    key_index: Int[Array, "r s"]
    filled: Bool[Array, "r 1 s"] | None
    """None where the masks hide what is not written yet, as it would come later in the text."""
    key_tables: Sequence[Tables | None]
    """One per piece, to rotate the keys when they are read; None if they are cached rotated."""
    positions: tuple[list[Array], list[Array]]
    """The mapped ones of queries and keys, one array per piece, for a bias."""


def decode(
    attention: Attention,
    rotation: Rotation | Float32Rotation,
    lengths: Int[Array, " b"],
    step: Any,
    *,
    prompt_slots: int,
    continuations: int,
    new_tokens: int,
    rotated: bool,
    layers: Layers = ALIKE,
) -> Attend:
    """Make attention of token `step` of every continuation.

    It attends to the prompt, to its continuation so far and to itself. The prompt of a row fills
    `lengths` of the first `prompt_slots` slots. None of several continuations computes with the
    slots of the others. rotated: see `cache.caches_rotated`.
    """
    pieces = layers.scaled(pieces_at(attention, rotation))
    B = lengths.shape[0]
    C = continuations
    lengths = lengths[:, None]
    query_index = jnp.broadcast_to(lengths + step, (B, C))
    tables_of_queries = [query_tables(piece, rotation, query_index) for piece in pieces]
    new_key_tables = key_tables(pieces[0], rotation, query_index)

    prompt_index = jnp.broadcast_to(jnp.arange(prompt_slots)[None], (B, prompt_slots))
    in_prompt = prompt_index < lengths
    written_index = lengths + jnp.arange(new_tokens)[None]

    def slots(
        first: int,
        key_index: Array,
        filled: Array | None,
        query_index: Array = query_index,
        continuations: int = 1,
    ) -> _Slots:
        return _Slots(
            first=first,
            count=key_index.shape[1] * continuations,
            continuations=continuations,
            query_index=query_index,
            key_index=key_index,
            filled=filled,
            key_tables=[
                None if rotated else key_tables(piece, rotation, key_index) for piece in pieces
            ],
            positions=(
                [piece.query_positions(query_index) for piece in pieces],
                [piece.key_positions(key_index) for piece in pieces],
            ),
        )

    if C == 1:
        index = jnp.concatenate([prompt_index, written_index], 1)
        filled = jnp.concatenate([in_prompt, jnp.ones_like(written_index, bool)], 1)
        parts = [slots(0, index, filled[:, None])]
    else:
        of_rows = jnp.repeat(written_index, C, axis=0)
        parts = [
            slots(0, prompt_index, in_prompt[:, None]),
            slots(prompt_slots, of_rows, None, query_index.reshape(B * C, 1), C),
        ]

    def attend(
        q: Array, k: Array, v: Array, cache: Cache, layer: Any, kind: Kind = 0, number: Any = 0
    ) -> tuple[Array, Cache]:
        rotate = layers.rotation(kind, number)
        new_keys = rotate(k, new_key_tables) if rotated else k
        cache = write(cache, new_keys, v, layer, prompt_slots + step * C)
        masks = layers.masks(pieces, kind)
        num_heads = q.shape[2]
        cached = [read(cache, layer, batch=B, first=part.first, count=part.count) for part in parts]

        def of_heads(heads: HeadSet) -> Array:
            own_q = heads.queries(q)
            queries = [rotate(own_q, tables) for tables in heads.of_pieces(tables_of_queries)]

            def read_part(part: _Slots, slots: tuple[Array, Array]) -> tuple[Array, Array]:
                """Scores [B, K, G, C, S] of a part, and its values."""
                keys, values = (
                    _rows_of_continuations(heads.keys(x), part.continuations) for x in slots
                )
                bias = position_bias(layers.bias, pieces, num_heads, *part.positions)
                scores = masked_scores(
                    [q.reshape(len(keys), -1, *q.shape[2:]) for q in queries],
                    [
                        keys if tables is None else rotate(keys, tables)
                        for tables in heads.of_pieces(part.key_tables)
                    ],
                    heads.of_pieces(masks),
                    query_index=part.query_index,
                    key_index=part.key_index,
                    allowed=part.filled,
                    kind=None if isinstance(kind, int) else kind,
                    bias=None if bias is None else bias.of_heads(heads),
                )
                return _with_queries(scores, C // part.continuations, C), values

            # One softmax over all parts.
            all_scores, all_values = zip(*map(read_part, parts, cached), strict=True)
            highest = [scores.max(-1, keepdims=True) for scores in all_scores]
            largest = functools.reduce(jnp.maximum, highest)
            weights = [jnp.exp(scores - largest) for scores in all_scores]
            total = sum(part.sum(-1, keepdims=True) for part in weights)
            out = jnp.zeros(own_q.shape, v.dtype)
            for part, of_part, values in zip(parts, weights, all_values, strict=True):
                normalised = (of_part / total).astype(values.dtype)
                by_row = _with_queries(normalised, C, C // part.continuations)
                out = out + weighted_values(by_row, values).reshape(own_q.shape)
            return out

        return over_heads(pieces, num_heads, k.shape[2], of_heads), cache

    return attend


def _rows_of_continuations(
    x: Float[Array, "b s k h"], continuations: int
) -> Float[Array, "r n k h"]:
    """One row for each continuation, with its slots in the order of its tokens."""
    B, S, K, H = x.shape
    by_token = x.reshape(B, S // continuations, continuations, K, H)
    return by_token.swapaxes(1, 2).reshape(B * continuations, -1, K, H)


def _with_queries(
    x: Float[Array, "r k g t s"], queries: int, wanted: int
) -> Float[Array, "r2 k g t2 s"]:
    """Scores or weights of rows of `queries` queries as those of rows of `wanted`."""
    if queries == wanted:
        return x
    R, K, G, _, S = x.shape
    if wanted == 1:
        return x.transpose(0, 3, 1, 2, 4).reshape(R * queries, K, G, 1, S)
    return x.reshape(R // wanted, wanted, K, G, S).transpose(0, 2, 3, 1, 4)
