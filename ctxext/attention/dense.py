"""The reference kernel: obviously right, and holds all T x S scores.

Shapes: B batch, T queries, S keys, N query heads, K key-value heads, N / K queries per key head,
H head_dim.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ctxext.attention.bias import PositionBias
from ctxext.attention.layers import LayerMask, visible_in

MASK_VALUE = -1e30
"""The score of a masked pair: finite, as the softmax of a row that is all -inf is NaN."""


def masked_scores(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b s k h"]],
    masks: Sequence[LayerMask],
    *,
    query_index: Int[Array, "#b t"],
    key_index: Int[Array, "#b s"],
    query_segments: Int[Array, "b t"] | None = None,
    key_segments: Int[Array, "b s"] | None = None,
    allowed: Bool[Array, "b #t s"] | None = None,
    kind: Any = None,
    bias: PositionBias | None = None,
) -> Float[Array, "b k g t s"]:
    """q k / sqrt(H) over the union of the pieces, float32; `MASK_VALUE` where nothing is visible.

    One rotated query and key and one mask per piece. The masks read `query_index` and `key_index`.
    Tokens of different segments never see each other; `allowed` hides more. kind: that of the
    layer, for masks that are one per kind. bias: added to the scores.
    """
    B, T, N, H = queries[0].shape
    K = keys[0].shape[2]
    scores = jnp.full((1, 1, 1, 1, 1), MASK_VALUE, jnp.float32)
    for number, (q, k, mask) in enumerate(zip(queries, keys, masks, strict=True)):
        q = q.reshape(B, T, K, N // K, H)
        visible = visible_in(mask, kind, query_index[:, :, None], key_index[:, None, :])
        if query_segments is not None and key_segments is not None:
            visible = visible & (query_segments[:, :, None] == key_segments[:, None, :])
        if allowed is not None:
            visible = visible & allowed
        piece = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32) * H**-0.5
        if bias is not None:
            piece = piece + bias.of(number, K)
        scores = jnp.where(visible[:, None, None], piece, scores)  # masks are disjoint
    return scores


def dense(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b s k h"]],
    values: Float[Array, "b s k h"],
    masks: Sequence[LayerMask],
    **options: Any,
) -> Float[Array, "b t n h"]:
    """softmax(q k / sqrt(H)) v over the union of the pieces; scores and softmax in float32.

    options: see `masked_scores`.
    """
    scores = masked_scores(queries, keys, masks, **options)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return weighted_values(weights, values)


def weighted_values(
    weights: Float[Array, "b k g t s"], values: Float[Array, "b s k h"]
) -> Float[Array, "b t n h"]:
    """The sum of the values, by weight."""
    B, K, G, T, _ = weights.shape
    return jnp.einsum("bkgts,bskh->btkgh", weights, values).reshape(B, T, K * G, -1)
