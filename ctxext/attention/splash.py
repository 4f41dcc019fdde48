"""Splash attention, the fused TPU kernel of jax (Pallas), for any causal masks.

One piece has its own gradient. Several are one call each, merged by log-sum-exp (`merge`), forward
only: splash refuses the gradient of what it returns with its log-sum-exp (jax 0.10.2), so that the
gradient is that of the kernel `blocked`.

Pallas is imported inside the functions, so that other platforms never load it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from ctxext.attention import merge
from ctxext.attention.devices import on_each_device
from ctxext.attention.pieces import Mask
from ctxext.attention.request import Request
from ctxext.attention.tiles import SAVED_NAME

LANES = 128
"""Blocks must be whole vector registers long."""


def refusal(request: Request) -> str:
    """Why splash cannot do a request exactly; empty if it can."""
    for mask in request.masks:
        if request.packed and not mask.by_distance:
            return f"it evaluates {mask} from the first token of a row, not of each packed document"
    if request.seq_len % LANES:
        return f"it needs a multiple of {LANES} tokens, not {request.seq_len}"
    return ""


def splash(
    queries: Sequence[Float[Array, "b t n h"]],
    keys: Sequence[Float[Array, "b t k h"]],
    values: Float[Array, "b t k h"],
    masks: Sequence[Mask],
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    sharding: NamedSharding | None = None,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` wherever `refusal` is empty; interpret: on any platform, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    def of_piece(
        q: Array, k: Array, v: Array, mask: Mask, segment_ids: Array | None, with_lse: bool
    ) -> Any:
        kernel = _kernel(mask, q.shape[1], q.shape[2], interpret, with_lse)
        scaled = q * q.shape[-1] ** -0.5  # splash does not scale
        # Splash wants heads before tokens, and one row at a time.
        heads_first = [x.swapaxes(1, 2) for x in (scaled, k, v)]
        segments = None if segment_ids is None else kernels.SegmentIds(segment_ids, segment_ids)
        return jax.tree.map(lambda x: x.swapaxes(1, 2), jax.vmap(kernel)(*heads_first, segments))

    def forward(
        q: Sequence[Array],
        k: Sequence[Array],
        v: Array,
        masks: Sequence[Mask],
        segment_ids: Array | None,
    ) -> list[merge.Output]:
        outputs = []
        for own_q, own_k, mask in zip(q, k, masks, strict=True):
            out, (lse,) = of_piece(own_q, own_k, v, mask, segment_ids, True)
            outputs.append((out, lse))
        return outputs

    def local(
        q: tuple[Array, ...], k: tuple[Array, ...], v: Array, segment_ids: Array | None
    ) -> Array:
        if len(masks) == 1:
            return of_piece(q[0], k[0], v, masks[0], segment_ids, False)
        return merge.attend(forward, q, k, v, masks, segment_ids)

    return on_each_device(local, sharding)(tuple(queries), tuple(keys), values, segment_ids)


def _kernel(mask: Mask, T: int, heads: int, interpret: bool, with_lse: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    size = next(size for size in (512, 256, LANES) if T % size == 0)
    blocks = kernels.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([_mask_class()(mask, T)] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        interpret=interpret,
        residual_checkpoint_name=None if with_lse else SAVED_NAME,
        save_residuals=with_lse,
    )


@functools.cache
def _mask_class() -> Any:
    """The class that shows one of our masks to splash."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    class LazyMask(masks.CausalMask):
        """One of our masks, evaluated block by block.

        Blocks that are all alike are not evaluated: without that, long rows take minutes.
        """

        def __init__(self, mask: Mask, T: int) -> None:
            super().__init__((T, T))
            self.mask = mask
            self.mask_function = mask.visible

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            query, key = (
                range(*part.indices(n)) for part, n in zip(index, self.shape, strict=True)
            )
            any_visible, all_visible = self.mask.block(query, key)
            if any_visible and not all_visible:
                return super().__getitem__(index)
            return np.broadcast_to(np.bool_(all_visible), (len(query), len(key)))

        def __eq__(self, other: object) -> bool:
            if not isinstance(other, LazyMask):
                return False
            return (self.mask, self.shape) == (other.mask, other.shape)

        def __hash__(self) -> int:
            return hash((self.mask, self.shape))

    return LazyMask
