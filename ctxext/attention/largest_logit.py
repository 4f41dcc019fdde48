"""The largest attention logit, which grows before training diverges (arXiv 2302.05442, 2.3)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention.bias import PositionBias, linear_bias
from ctxext.attention.layers import LayerMask, visible_in

MAX_SCORES = 2**24
"""The most scores that are held at once."""


def largest_logit(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b s k h"]],
    masks: Sequence[LayerMask],
    *,
    query_index: Int[Array, "b t"],
    key_index: Int[Array, "b s"],
    query_segments: Int[Array, "b t"],
    key_segments: Int[Array, "b s"],
    kind: Any = None,
    bias: PositionBias | None = None,
) -> Float[Array, ""]:
    """max of q k / sqrt(H) over all visible pairs and heads, float32: the scores of `dense`.

    One rotated query and key and one mask per piece. A query of index -1 is left out. -inf if
    nothing is visible. kind, bias: see `dense`.
    """
    B, T, N, H = queries[0].shape
    S, K = keys[0].shape[1:3]
    size = min(T, max(1, MAX_SCORES // (B * N * S)))
    num_chunks = -(-T // size)

    def chunks(x: Array, padding: int = 0) -> Array:
        """[B, T, ...] -> [num_chunks, B, size, ...]."""
        widths = ((0, 0), (0, num_chunks * size - T), *[(0, 0)] * (x.ndim - 2))
        x = jnp.pad(x, widths, constant_values=padding)
        return x.reshape(B, num_chunks, size, *x.shape[2:]).swapaxes(0, 1)

    def largest_of_chunk(chunk: tuple) -> Array:
        index, segments, query_positions, *pieces = chunk
        largest = jnp.float32(-jnp.inf)
        for number, (q, k, mask) in enumerate(zip(pieces, keys, masks, strict=True)):
            q = q.reshape(B, size, K, N // K, H)
            products = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
            scores = products * H**-0.5
            if bias is not None:
                slopes = bias.slopes[number].reshape(K, -1)
                key_positions = bias.key_positions[number]
                scores = scores + linear_bias(slopes, query_positions[number], key_positions)
            visible = visible_in(mask, kind, index[:, :, None], key_index[:, None, :])
            visible = visible & (segments[:, :, None] == key_segments[:, None, :])
            scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
            largest = jnp.maximum(largest, scores.max())
        return largest

    positions = () if bias is None else tuple(map(chunks, bias.query_positions))
    of_tokens = chunks(query_index, -1), chunks(query_segments), positions
    chunked = (*of_tokens, *map(chunks, queries))
    return jax.lax.map(largest_of_chunk, chunked).max()
