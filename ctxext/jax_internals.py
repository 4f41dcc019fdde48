"""The three names of jax that are not public but needed, in one place and with a clear error.

`client` is the key-value store of `jax.distributed`. The public ways to hand a value to all
processes are collectives of the devices, which time out after half a minute on CPU, while the
primary process may write or read for hours.

`attention_with_lse` has the log-sum-exp in float32. The public
`jax.nn.dot_product_attention(return_residual=True)` rounds it to the type of the output (jax
0.10.2): in bfloat16 by up to 1/32 where it is above 8, which is 3 % of the weight of a piece. And
the gradient of either function ignores what comes through the log-sum-exp.
"""

import functools
import importlib
from typing import Any

CLIENT = ("jax._src.distributed", "global_state.client")
ON_TPU = ("jax._src.cloud_tpu_init", "running_in_cloud_tpu_vm")
ATTENTION_WITH_LSE = ("jax._src.cudnn.fused_attention_stablehlo", "dot_product_attention")


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


def attention_with_lse() -> Any:
    """cuDNN's `dot_product_attention` and its `MaskType`, as attributes.

    Raises ValueError if this jax no longer has them.
    """
    _private(ATTENTION_WITH_LSE, "use the kernel blocked")
    return importlib.import_module(ATTENTION_WITH_LSE[0])


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
