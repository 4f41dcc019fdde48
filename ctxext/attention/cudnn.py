"""cuDNN's fused attention on NVIDIA GPUs, for methods of one causal band in 16-bit numbers."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention.devices import on_each_device
from ctxext.attention.pieces import Band, Mask
from ctxext.attention.request import Request


def refusal(request: Request) -> str:
    """Why cuDNN cannot do a request exactly; empty if it can."""
    if len(request.masks) != 1:
        return f"it evaluates one piece, this method has {len(request.masks)}"
    (mask,) = request.masks
    if not isinstance(mask, Band) or mask.low:
        return f"it evaluates causal bands from distance 0, not {mask}"
    if np.dtype(request.dtype).itemsize != 2:
        return f"it computes in bfloat16, not {np.dtype(request.dtype)}"
    if request.packed:
        return "it does not know segments, so that packed documents would see each other"
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
    (q,), (k,), (mask,) = queries, keys, masks
    assert isinstance(mask, Band) and not mask.low and segment_ids is None
    # cuDNN counts the tokens before the query, we count the query too.
    window = None if mask.high is None else (mask.high - 1, 0)

    def local(q: Array, k: Array, v: Array, _: None) -> Array:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=window, implementation="cudnn"
        )

    return on_each_device(local, sharding)(q, k, values, None)
