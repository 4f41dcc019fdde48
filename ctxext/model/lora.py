"""Low-rank adapters, leaves next to a kernel: y = x W + s (dropout(x) A) B (arXiv 2106.09685).

Trees in, trees out; kernels are [L, in, out], A is `lora_a` [L, in, R], B is `lora_b` [L, R, out].
The model multiplies; here adapters are added, prepared for a training step, and merged.
"""

import dataclasses
import zlib
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ctxext.model.decoder import Params
from ctxext.model.quantized import QuantizedKernel, is_quantized


def add_adapters(params: Params, targets: Collection[str], rank: int, seed: int) -> Params:
    """The tree with adapters that change nothing yet: A uniform within 1 / sqrt(in), B zero."""

    def add(path: str, linear: Params) -> Params:
        layers, inputs, outputs = linear["kernel"].shape
        key = _fold_in_path(jax.random.key(seed), path)
        bound = inputs**-0.5
        a = jax.random.uniform(key, (layers, inputs, rank), minval=-bound, maxval=bound)
        return {**linear, "lora_a": a, "lora_b": jnp.zeros((layers, rank, outputs))}

    return _map_linears(add, params, targets)


def materialize(
    params: Params, targets: Collection[str], scale: float, rate: float, key: Key[Array, ""] | None
) -> Params:
    """The tree as a training step runs it: s B for B and, with a `key`, the leaves for dropout.

    Each layer of each module draws from its own key, which depends on `key`, the layer and the
    name alone, and from it for each token by its index in the batch: neither chunks nor devices
    change a draw.
    """

    def prepare(path: str, linear: Params) -> Params:
        prepared = {**linear, "lora_b": scale * linear["lora_b"]}
        if key is not None:
            layers = jnp.arange(linear["lora_b"].shape[0])
            module_key = _fold_in_path(key, path)
            prepared["lora_key"] = jax.vmap(jax.random.fold_in, (None, 0))(module_key, layers)
            prepared["lora_keep"] = jnp.full(layers.shape, 1 - rate, jnp.float32)
        return prepared

    return _map_linears(prepare, params, targets)


def merge(params: Params, targets: Collection[str], scale: float) -> Params:
    """The tree without adapters: W + s A B, float32."""

    def merge_one(_: str, linear: Params) -> Params:
        a, b, kernel = (linear[name].astype(jnp.float32) for name in ("lora_a", "lora_b", "kernel"))
        rest = {name: value for name, value in linear.items() if name not in ("lora_a", "lora_b")}
        return {**rest, "kernel": kernel + scale * jnp.matmul(a, b, precision="highest")}

    return _map_linears(merge_one, params, targets)


def hold(params: Params, targets: Collection[str], scale: float) -> Params:
    """The tree as a model with adapters that are not merged: with `lora_scale` [L], which is s."""

    def hold_one(_: str, linear: Params) -> Params:
        layers = linear["lora_b"].shape[0]
        return {**linear, "lora_scale": jnp.full(layers, scale, jnp.float32)}

    return _map_linears(hold_one, params, targets)


@dataclasses.dataclass(frozen=True, eq=False)
class MergedStack:
    """The float32 kernels [L, in, out] of a tree that `hold` returned: W + s A B, W dequantized.

    Indexing computes one layer, so that they are never in memory together.
    """

    dtype: ClassVar[np.dtype] = np.dtype(np.float32)
    kernel: QuantizedKernel | Array
    adapter: tuple[Array, Array, Array] | None
    """A, B and s; None for a kernel without an adapter."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[L, in, out]."""
        return tuple(self.kernel.shape)

    def __getitem__(self, layer: int) -> Float[Array, "i o"]:
        parts = (self.kernel, self.adapter)
        return _merged(jax.tree.map(lambda leaf: leaf[layer : layer + 1], parts))[0]

    def astype(self, dtype: Any) -> Float[Array, "l i o"]:
        """All layers, in memory together."""
        return _merged((self.kernel, self.adapter)).astype(dtype)


@jax.jit
def _dequantized(kernel: QuantizedKernel) -> Array:
    return kernel.dequantize()


def _merged(parts: tuple[Any, Any]) -> Array:
    kernel, adapter = parts
    kernel = _dequantized(kernel) if is_quantized(kernel) else kernel.astype(jnp.float32)
    if adapter is None:
        return kernel
    a, b, scale = adapter
    # Not compiled as one, so that product and sum are rounded as where a PEFT adapter is merged.
    return kernel + scale[:, None, None] * jnp.matmul(a, b, precision="highest")


def merge_layers(params: Params) -> Params:
    """A plain tree of one that `hold` returned: each layer of a kernel is merged when it is read.

    A kernel is a `MergedStack` if it is quantized or has an adapter. Any other tree is returned as
    it is.
    """
    merged: Params = {}
    adapter = None
    if "lora_scale" in params:
        adapter = (params["lora_a"], params["lora_b"], params["lora_scale"])
    for key, value in params.items():
        if isinstance(value, dict):
            merged[key] = merge_layers(value)
        elif key == "kernel" and (adapter or is_quantized(value)):
            merged[key] = MergedStack(value, adapter)
        elif not key.startswith("lora_"):
            merged[key] = value
    return merged


def materialize_merged(params: Params) -> Params:
    """The tree of `merge_layers` as arrays, which takes the memory of the float32 model."""
    return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), params)


def _map_linears(
    change: Callable[[str, Params], Params],
    params: Params,
    targets: Collection[str],
    path: tuple[str, ...] = (),
) -> Params:
    """The tree with `change(path, linear)` in place of every linear that `targets` names."""
    if path and path[-1] in targets:
        return change(".".join(path), params)
    return {
        key: _map_linears(change, value, targets, (*path, key))
        if isinstance(value, dict)
        else value
        for key, value in params.items()
    }


def _fold_in_path(key: Key[Array, ""], path: str) -> Key[Array, ""]:
    """A key by name, so that another choice of targets changes no draw."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))
