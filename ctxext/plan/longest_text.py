"""Whether a text of some length could be read, or made, on this machine at all."""

import jax
import jax.numpy as jnp

from ctxext.model.config import LlamaConfig
from ctxext.parallel.mesh import Mesh
from ctxext.plan.accelerators import GIB, machine_bytes


def text_bytes(config: LlamaConfig, num_tokens: int, *, dtype: str, is_written: bool) -> int:
    """Bytes of keys and values, 2 L T K H numbers of `dtype`, and no more.

    is_written: of all layers, as for a text that the model continues. One that it only reads needs
    those of one layer at a time.
    """
    layers = config.num_hidden_layers if is_written else 1
    heads = config.num_key_value_heads * config.head_dim
    return 2 * layers * num_tokens * heads * jnp.dtype(dtype).itemsize


def usable_bytes(mesh: Mesh) -> int:
    """The memory of all devices of a mesh together."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # CPUs, where the devices of a process share what there is
        return machine_bytes() * jax.process_count()
    return limit * mesh.build().devices.size


def check_length(
    config: LlamaConfig, num_tokens: int, *, dtype: str, mesh: Mesh, is_written: bool, option: str
) -> None:
    """Raise ValueError, naming `option`, for a text whose keys and values alone do not fit."""
    needed = text_bytes(config, num_tokens, dtype=dtype, is_written=is_written)
    usable = usable_bytes(mesh)
    if needed > usable:
        raise ValueError(
            f"{option}: the keys and values of one text of {num_tokens:,} tokens take "
            f"{needed / GIB:,.1f} GiB, and there are {usable / GIB:,.1f} GiB of memory: give a "
            "smaller number, or more devices (--mesh)"
        )


def check_samples(num_tokens: int, num_samples: int) -> None:
    """Raise ValueError, naming --seq-len and --n, for samples of RULER that memory cannot hold.

    Its generators keep the texts of all samples of a task until the last one, and the ids of one:
    at least a byte per token of each text, and 8 bytes per id.
    """
    needed = num_tokens * (num_samples + 8)
    if needed > machine_bytes():
        raise ValueError(
            f"--seq-len, --n: {num_samples:,} samples of {num_tokens:,} tokens take at least "
            f"{needed / GIB:,.1f} GiB, and there are {machine_bytes() / GIB:,.1f} GiB of memory: "
            "give smaller numbers"
        )
