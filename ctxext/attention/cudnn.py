"""cuDNN's fused attention on NVIDIA GPUs in 16-bit numbers, for causal bands and chunks.

One causal band is one call, with cuDNN's own gradient. Several pieces are one call or more each,
merged by log-sum-exp in float32 (`merge`): forward only, with the gradient of the kernel `blocked`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext import jax_internals
from ctxext.attention import merge
from ctxext.attention.devices import on_each_device
from ctxext.attention.pieces import Band, Mask
from ctxext.attention.request import Request


def refusal(request: Request) -> str:
    """Why cuDNN cannot do a request exactly; empty if it can."""
    for mask in request.masks:
        if not merge.can_split(mask, request.seq_len):
            return f"it evaluates causal bands, and chunks up to {merge.MOST_CHUNKS}, not {mask}"
    if np.dtype(request.dtype).itemsize != 2:
        return f"it computes in bfloat16, not {np.dtype(request.dtype)}"
    if request.packed:
        return "it does not know segments, so that packed documents would see each other"
    if not is_single_call(request.masks):
        try:
            jax_internals.attention_with_lse()
        except ValueError as error:
            return str(error)
    return ""


def cudnn(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[Mask],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    sharding: NamedSharding | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` wherever `refusal` is empty."""
    assert segment_ids is None

    def local(q: tuple[Array, ...], k: tuple[Array, ...], v: Array, _: None) -> Array:
        if not is_single_call(masks):
            return merge.attend(_forward, q, k, v, masks)
        (mask,) = masks
        assert isinstance(mask, Band)
        # cuDNN counts the tokens before the query, we count the query too.
        window = None if mask.high is None else (mask.high - 1, 0)
        return jax.nn.dot_product_attention(
            q[0], k[0], v, is_causal=True, local_window_size=window, implementation="cudnn"
        )

    return on_each_device(local, sharding)(tuple(queries), tuple(keys), values, None)


def is_single_call(masks: Sequence[Any]) -> bool:
    """Whether cuDNN evaluates these pieces in one call, and their gradient too."""
    return len(masks) == 1 and isinstance(masks[0], Band) and masks[0].low == 0


def _forward(
    queries: Sequence[Array],
    keys: Sequence[Array],
    values: Array,
    masks: Sequence[Mask],
    segment_ids: Array | None,
) -> list[merge.Output]:
    return [
        merge.by_calls(_with_lse, q, k, values, mask)
        for q, k, mask in zip(queries, keys, masks, strict=True)
    ]


def _with_lse(q: Array, k: Array, v: Array, causal: bool, window: int | None) -> merge.Output:
    library = jax_internals.attention_with_lse()
    out, lse = library.dot_product_attention(
        q,
        k,
        v,
        scale=q.shape[-1] ** -0.5,
        mask_type=library.MaskType.CAUSAL if causal else library.MaskType.NO_MASK,
        sliding_window_length=window,
        return_residual=True,
    )
    return out, lse.transpose(0, 2, 1)
