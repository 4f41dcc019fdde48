"""The devices that an array is on: their platform, their share of it, and running on each."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding, PartitionSpec

GPU = ("gpu", "cuda")
"""jax's names of NVIDIA GPUs: the backend, and the platform that programs are lowered for."""


def platform_of(sharding: NamedSharding | None) -> str:
    """The platform of the devices of a sharding; None is one device of the default platform."""
    if sharding is None:
        return jax.default_backend()
    return next(iter(sharding.device_set)).platform


def rows_times_heads(shape: tuple[int, ...], sharding: NamedSharding | None) -> int:
    """B x N of the part of an array [B, T, N, H] that one device holds."""
    B, _, N, _ = shape if sharding is None else sharding.shard_shape(shape)
    return B * N


def on_each_device(function: Callable, sharding: NamedSharding | None) -> Callable:
    """`function(q, k, v, segment_ids)` on the rows and heads of every device, sequences whole.

    The partitioner cannot look into the kernels of libraries, and would gather their inputs.
    """
    if sharding is None or sharding.mesh.size == 1:
        return function
    rows, _, heads = sharding.spec[:3]
    per_head = PartitionSpec(rows, None, heads)
    per_token = PartitionSpec(rows)
    return jax.shard_map(
        function,
        mesh=sharding.mesh,
        in_specs=(per_head, per_head, per_head, per_token),
        out_specs=per_head,
        check_vma=False,
    )
