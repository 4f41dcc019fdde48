"""The two names of jax that are not public but needed, in one place and with a clear error.

`client` is the key-value store of `jax.distributed`. The public ways to hand a value to all
processes are collectives of the devices, which time out after half a minute on CPU, while the
primary process may write or read for hours.
"""

import functools
import importlib
from typing import Any

CLIENT = ("jax._src.distributed", "global_state.client")
ON_TPU = ("jax._src.cloud_tpu_init", "running_in_cloud_tpu_vm")


def client() -> Any:
    """The key-value store that `jax.distributed.initialize` opened; None before that.

    Raises ValueError if this jax no longer has it.
    """
    return _private(CLIENT, "run as a single process, without a launcher or with --num-processes 1")


def on_tpu() -> bool:
    """Whether jax found TPU chips in this machine when it was imported.

    Raises ValueError if this jax no longer has that function.
    """
    return bool(_private(ON_TPU, "say with --num-processes 1 that there is no other process"))


def _private(name: tuple[str, str], advice: str) -> Any:
    import jax

    module, path = name
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        raise ValueError(
            f"jax {jax.__version__} no longer has {module}.{path}, which ctxext needs here: "
            f"{advice}; or install the version of jax in constraints/"
        ) from None
