"""Several pieces by a stock flash kernel: one call or more for each, merged by log-sum-exp.

No pair is computed in vain, and nothing is subtracted: a band that begins at distance w is causal
attention of the queries from token w on to the keys up to w tokens before the last. So there is no
cancellation, as there is where the far piece is a causal one minus its near part.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention.blocked import gradients
from ctxext.attention.layers import LayerMask
from ctxext.attention.masks import Chunks
from ctxext.attention.pieces import Band, Mask
from ctxext.attention.tiles import named

MOST_CHUNKS = 64
"""The most chunks of a row: from the third on, each chunk adds a call to the program."""

Output = tuple[Array, Array]
"""Attention [B, T, N, H], and the log-sum-exp of its scores [B, T, N], float32; -inf where no key
is visible."""
Forward = Callable[
    [Sequence[Array], Sequence[Array], Array, Sequence[Mask], Array | None], list[Output]
]
"""(queries, keys, values, masks, segment ids) -> the output of each piece."""
StockKernel = Callable[[Array, Array, Array, bool, int | None], Output]
"""(q, k, v, causal, window) -> attention to all keys, or to those up to the index of the query and
of these to the last `window`. A library's; tokens and keys may differ in number."""


def can_split(mask: LayerMask, seq_len: int) -> bool:
    """Whether calls of a stock kernel evaluate a mask exactly."""
    if isinstance(mask, Chunks):
        is_whole = (mask.low, mask.high) in ((0, 1), (1, 2), (2, None)) and mask.offset == 0
        return is_whole and -(-seq_len // mask.size) <= MOST_CHUNKS
    return isinstance(mask, Band)


def by_calls(kernel: StockKernel, q: Array, k: Array, v: Array, mask: Mask) -> Output:
    """One piece by calls of a stock kernel; see `can_split`."""
    if isinstance(mask, Chunks):
        return _chunks(kernel, q, k, v, mask)
    assert isinstance(mask, Band)
    T = q.shape[1]
    low = min(mask.low, T)
    window = None if mask.high is None else max(0, mask.high - mask.low)
    if low == T or window == 0:
        return _nothing(q)
    return _later(q, low, kernel(q[:, low:], k[:, : T - low], v[:, : T - low], True, window))


def _nothing(q: Array) -> Output:
    return jnp.zeros_like(q), jnp.full(q.shape[:3], -jnp.inf, jnp.float32)


def _later(q: Array, first: int, output: Output) -> Output:
    """The output of the queries from `first` on, as one of all of them."""
    out, lse = (jnp.pad(x, ((0, 0), (first, 0)) + ((0, 0),) * (x.ndim - 2)) for x in output)
    is_before = jnp.arange(q.shape[1])[None, :, None] < first
    return out, jnp.where(is_before, -jnp.inf, lse)


def _chunks(kernel: StockKernel, q: Array, k: Array, v: Array, mask: Chunks) -> Output:
    T, size = q.shape[1], mask.size
    first = mask.low * size
    if first >= T:
        return _nothing(q)

    def apart(x: Array) -> Array:
        """[B, T, N, H] as [B * chunks, C, N, H]."""
        padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
        return padded.reshape(-1, size, *x.shape[2:])

    def together(x: Array) -> Array:
        return x.reshape(q.shape[0], -1, *x.shape[2:])[:, : T - first]

    if mask.high == 1:
        out, lse = kernel(apart(q), apart(k), apart(v), True, None)
        return together(out), together(lse)
    if mask.high == 2:
        # The last chunk, which may be shorter, comes before no other.
        count = (T - 1) // size
        previous_k, previous_v = (apart(x[:, : count * size]) for x in (k, v))
        out, lse = kernel(apart(q[:, first:]), previous_k, previous_v, False, None)
        return _later(q, first, (together(out), together(lse)))
    calls = [
        kernel(
            q[:, start : start + size],
            k[:, : start - size],
            v[:, : start - size],
            False,
            None,
        )
        for start in range(first, T, size)
    ]
    out, lse = (jnp.concatenate(parts, 1) for parts in zip(*calls, strict=True))
    return _later(q, first, (out, lse))


def merged(outputs: Sequence[Output], dtype: jnp.dtype) -> Output:
    """One softmax over the pieces, summed in float32: o = sum of exp(lse_p - lse) o_p."""
    lse = functools.reduce(jnp.logaddexp, [lse for _, lse in outputs])
    total = jnp.float32(0)
    for out, of_piece in outputs:
        weight = jnp.exp(of_piece - lse)[..., None]
        # The output of a query without keys is whatever the kernel leaves there.
        total = total + jnp.where(weight > 0, weight * out.astype(jnp.float32), 0)
    return total.astype(dtype), lse


def attend(
    forward: Forward,
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[Mask],
    segment_ids: Int[Array, "b t"] | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense`: the output by `forward`, the gradient by the kernel `blocked`.

    No stock kernel has a right gradient where its log-sum-exp is used. That of the merged softmax
    needs no more than its output and log-sum-exp, and `blocked` computes it from them.
    """

    def output(queries: tuple, keys: tuple, values: Array, segment_ids: Array | None) -> Output:
        outputs = forward(queries, keys, values, masks, segment_ids)
        return merged(outputs, values.dtype)

    @jax.custom_vjp
    def attention(queries: tuple, keys: tuple, values: Array, segment_ids: Array | None) -> Array:
        return output(queries, keys, values, segment_ids)[0]

    def with_saved(
        queries: tuple, keys: tuple, values: Array, segment_ids: Array | None
    ) -> tuple[Array, tuple]:
        out, lse = named(*output(queries, keys, values, segment_ids))
        return out, (queries, keys, values, segment_ids, out, lse)

    def backward(saved: tuple, grad: Array) -> tuple:
        queries, keys, values, segment_ids, out, lse = saved
        return *gradients(queries, keys, values, masks, segment_ids, (out, lse, grad)), None

    attention.defvjp(with_saved, backward)
    return attention(tuple(queries), tuple(keys), values, segment_ids)
