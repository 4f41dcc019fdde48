"""Kernels that vendors wrote: splash on TPU, cuDNN on GPU, for the methods of one piece.

Each is refused, with the reason, for what it cannot do exactly; `choose` falls back to `blocked` for "auto" alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ctxext.attention.pieces import Band, Mask
from ctxext.attention.tiles import SAVED

Kernel = Literal["dense", "blocked", "ring", "auto", "splash", "cudnn"]
KERNELS: tuple[Kernel, ...] = ("dense", "blocked", "ring", "auto", "splash", "cudnn")
GPU = ("gpu", "cuda")
VENDOR: dict[str, Kernel] = {"tpu": "splash", **dict.fromkeys(GPU, "cudnn")}
LANES = 128
"""Splash wants blocks of whole vector registers."""


def platform_of(sharding: NamedSharding | None) -> str:
    """The platform of the devices where an array lies; None: on one device of the default platform."""
    return jax.default_backend() if sharding is None else next(iter(sharding.device_set)).platform


def heads_of(shape: tuple[int, ...], sharding: NamedSharding | None) -> int:
    """Rows x heads of an array [B, T, N, H] on one device."""
    B, _, N, _ = shape if sharding is None else sharding.shard_shape(shape)
    return B * N


def largest_block(platform: str, heads: int) -> int:
    """Most tokens of a block in `blocked` and `ring`; heads: rows x query heads on one device.

    512, but on GPU 1024, where a pair of blocks is some 30 kernels to launch however small it is, or less if its scores
    took over 256 MiB. That is arithmetic on the compiled program: no GPU was measured.
    """
    if platform not in GPU:
        return 512
    return next((size for size in (1024, 512, 256) if heads * size**2 <= 2**26), 128)


def refusal(
    kernel: Kernel, masks: Sequence[Mask], *, platform: str, seq_len: int, dtype: Any, packed: bool
) -> str:
    """Why splash or cuDNN cannot do these pieces exactly, to read; empty if it can."""
    if VENDOR.get(platform) != kernel:
        return f"it is no kernel for {platform}"
    if len(masks) != 1:
        return f"it does one piece, this method has {len(masks)}"
    if kernel == "splash":
        return f"it wants a multiple of {LANES} tokens, not {seq_len}" if seq_len % LANES else ""
    if not isinstance(masks[0], Band) or masks[0].low:
        return f"it does causal bands from distance 0, not {masks[0]}"
    if np.dtype(dtype).itemsize != 2:
        return f"it computes in bfloat16, not {np.dtype(dtype)}"
    return "it knows no segments, without which packed documents see each other" if packed else ""


def choose(kernel: Kernel, masks: Sequence[Mask], **facts: Any) -> Kernel:
    """The kernel to run: "auto" is the vendor's where `refusal` has nothing against it, else `blocked`.

    Raises ValueError for a kernel that was asked for and cannot do it.
    """
    if kernel == "auto":
        vendor = VENDOR.get(facts["platform"])
        return vendor if vendor and not refusal(vendor, masks, **facts) else "blocked"
    if kernel in ("splash", "cudnn") and (reason := refusal(kernel, masks, **facts)):
        raise ValueError(f"kernel {kernel!r} cannot be used: {reason}; choose blocked, or auto")
    return kernel


def splash(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    mask: Mask,
    *,
    segment_ids: Int[Array, "b t"] | None = None,
    sharding: NamedSharding | None = None,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` for one piece, on TPU; interpret: anywhere, slowly. T must be a multiple of 128."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    def local(q: Array, k: Array, v: Array, segment_ids: Array | None) -> Array:
        kernel = _splash(mask, q.shape[1], q.shape[2], interpret)
        q, k, v = (
            x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v)
        )  # the kernel does not scale
        segments = None if segment_ids is None else kernels.SegmentIds(segment_ids, segment_ids)
        return jax.vmap(kernel)(q, k, v, segments).swapaxes(1, 2)

    return _spread(local, sharding)(q, k, v, segment_ids)


def cudnn(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    mask: Mask,
    *,
    sharding: NamedSharding | None = None,
) -> Float[Array, "b t n h"]:
    """Equal to `dense` for a band from distance 0 on, on NVIDIA GPUs, in two bytes a number."""
    assert isinstance(mask, Band) and not mask.low

    def local(q: Array, k: Array, v: Array, _: None) -> Array:
        window = None if mask.high is None else (mask.high - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=True, local_window_size=window, implementation="cudnn"
        )

    return _spread(local, sharding)(q, k, v, None)


def _spread(local: Callable, sharding: NamedSharding | None) -> Callable:
    """`local` on every device's rows and heads: the partitioner cannot look into these kernels."""
    if sharding is None or sharding.mesh.size == 1:
        return local
    rows, _, heads = sharding.spec[:3]
    whole, tokens = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    specs = (whole, whole, whole, tokens)
    return jax.shard_map(
        local, mesh=sharding.mesh, in_specs=specs, out_specs=whole, check_vma=False
    )


def _splash(mask: Mask, T: int, heads: int, interpret: bool) -> Any:
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
    many = masks.MultiHeadMask([_lazy_mask()(mask, T)] * heads)
    return kernels.make_splash_mha(
        many,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        interpret=interpret,
        residual_checkpoint_name=SAVED,
    )


@functools.cache
def _lazy_mask() -> Any:
    """A mask class for splash; a function, so that this file does not import Pallas where it is not used."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    class Lazy(masks.CausalMask):
        """One of our masks. Blocks that are all alike cost nothing, without which long rows take minutes."""

        def __init__(self, mask: Mask, T: int) -> None:
            super().__init__((T, T))
            self.mask, self.mask_function = mask, mask.visible

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            query, key = (
                range(*part.indices(n)) for part, n in zip(index, self.shape, strict=True)
            )
            some, every = self.mask.block(query, key)
            if some and not every:
                return super().__getitem__(index)
            return np.broadcast_to(np.bool_(every), (len(query), len(key)))

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Lazy) and (self.mask, self.shape) == (other.mask, other.shape)

        def __hash__(self) -> int:
            return hash((self.mask, self.shape))

    return Lazy
