"""What is used of jax beyond its public names, two of them, so that a jax without them says so and one file is changed.

`client` is the store behind `jax.distributed`. The public ways to hand a value to all processes are collectives of the
devices, which give up after half a minute on CPU, while process 0 may write or read for hours.
"""

import functools
import importlib
from typing import Any

CLIENT = ("jax._src.distributed", "global_state.client")
ON_TPU = ("jax._src.cloud_tpu_init", "running_in_cloud_tpu_vm")


def client() -> Any:
    """The key-value store that `jax.distributed.initialize` opened, None before. Raises ValueError if jax lost it."""
    return _private(CLIENT, "run as one process, without a launcher or with --num-processes 1")


def on_tpu() -> bool:
    """Whether jax found TPU chips in this machine when it was imported. Raises ValueError if jax lost the answer."""
    return bool(
        _private(
            ON_TPU,
            "say whether there are other processes, with --num-processes 1 if there are none",
        )
    )


def _private(name: tuple[str, str], advice: str) -> Any:
    import jax

    module, path = name
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        raise ValueError(
            f"jax {jax.__version__} no longer has {module}.{path}, which ctxext needs here: {advice}, or "
            "install the jax that constraints/ pins"
        ) from None
