"""What the codes of quantized kernels stand for, by search over the values of each form."""

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.model.quantized.nf4 import DYNAMIC_VALUES, NF4_VALUES


def plain_values(kernel: np.ndarray, name: str) -> np.ndarray:
    """What the codes of a kernel [in, out] stand for, in float64 and by search, not by our code."""
    if name == "int8":
        largest = np.abs(np.float64(kernel)).max(axis=0)
        return np.rint(kernel / largest * 127) * largest / 127
    rows = np.float64(kernel.T)
    blocks = rows.reshape(-1, 64)
    scales = np.abs(blocks).max(axis=1)
    nearest = np.abs(blocks[:, :, None] / scales[:, None, None] - NF4_VALUES).argmin(axis=2)
    if name == "nf4-double":
        rest = scales - scales.mean()
        padded = np.pad(rest, (0, -len(rest) % 256)).reshape(-1, 256)
        largest = np.abs(padded).max(axis=1, keepdims=True)
        chosen = np.abs((padded / largest)[:, :, None] - DYNAMIC_VALUES).argmin(axis=2)
        scales = (DYNAMIC_VALUES[chosen] * largest).ravel()[: len(rest)] + scales.mean()
    return (NF4_VALUES[nearest] * scales[:, None]).reshape(rows.shape).T


def with_plain_values(params: dict, name: str) -> dict:
    """The float tree of what the quantized kernels of all layers stand for."""

    def change(path: tuple, leaf) -> jax.Array:
        if path[0].key != "segments" or path[-1].key != "kernel":
            return leaf
        layers = [plain_values(np.asarray(layer), name) for layer in leaf]
        return jnp.asarray(np.stack(layers), jnp.float32)

    return jax.tree_util.tree_map_with_path(change, params)
