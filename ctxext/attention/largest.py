"""The largest attention logit, which grows before training diverges (arXiv 2302.05442, section 2.3)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention.pieces import Mask

SCORES = 2**24  # held at once, in elements


def largest_logit(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b s k h"]],
    masks: Sequence[Mask],
    *,
    query_index: Int[Array, "b t"],
    key_index: Int[Array, "b s"],
    query_segments: Int[Array, "b t"],
    key_segments: Int[Array, "b s"],
) -> Float[Array, ""]:
    """max of q k / sqrt(H) over all visible pairs and heads, float32: what `dense` hands to its softmax.

    One rotated query and key per piece. A query of index -1 is left out. -inf where nothing is visible.
    """
    B, T, N, H = queries[0].shape
    S, K = keys[0].shape[1:3]
    size = min(T, max(1, SCORES // (B * N * S)))
    chunks = -(-T // size)

    def cut(x: Array, value: int = 0) -> Array:  # [B, T, ...] -> [chunks, B, size, ...]
        x = jnp.pad(
            x, ((0, 0), (0, chunks * size - T), *[(0, 0)] * (x.ndim - 2)), constant_values=value
        )
        return x.reshape(B, chunks, size, *x.shape[2:]).swapaxes(0, 1)

    def one(chunk: tuple) -> Array:
        index, segments, *parts = chunk
        top = jnp.float32(-jnp.inf)
        for q, k, mask in zip(parts, keys, masks, strict=True):
            q = q.reshape(B, size, K, N // K, H)
            scores = (
                jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32) * H**-0.5
            )
            visible = mask.visible(index[:, :, None], key_index[:, None, :])
            visible = visible & (segments[:, :, None] == key_segments[:, None, :])
            top = jnp.maximum(top, jnp.where(visible[:, None, None], scores, -jnp.inf).max())
        return top

    return jax.lax.map(one, (cut(query_index, -1), cut(query_segments), *map(cut, queries))).max()
