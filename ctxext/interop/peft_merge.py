"""An adapter merged into the parameter tree, a stack of layers at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.interop.hf_weights import Slot, slots
from ctxext.interop.lazy_tensor import LazyTensor, cast
from ctxext.interop.low_rank import LowRank
from ctxext.interop.peft_reader import Adapter
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params

FLOAT32 = np.dtype(np.float32)


def merge(params: Params, adapter: Adapter, config: LlamaConfig) -> Params:
    """The parameters with an adapter in them, in their own dtypes and on their own devices.

    A changed stack is computed in float32: W + s A B, with DoRA m (W + s A B) / |W + s A B|, the
    norm over the inputs. Raises ValueError for numbers that are not finite.
    """
    by_path: dict[tuple[str, ...], dict[str, Slot]] = {}
    for name, slot in slots(params).items():
        if name in adapter.low_rank or name in adapter.replaced:
            by_path.setdefault(slot.path, {})[name] = slot

    def merge_leaf(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        changed = by_path.get(tuple(entry.key for entry in path))
        if changed is None:
            return leaf
        merged = _merge_leaf(leaf.astype(jnp.float32), changed, adapter)
        return jax.device_put(merged.astype(leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(merge_leaf, params)


def trained_whole(adapter: Adapter, params: Params, config: LlamaConfig) -> set[str]:
    """The dotted paths of the leaves that an adapter replaces, in whole or in part."""
    named = slots(params)
    return {".".join(named[name].path) for name in adapter.replaced}


def _merge_leaf(leaf: jax.Array, changed: dict[str, Slot], adapter: Adapter) -> jax.Array:
    for name, slot in changed.items():
        if name in adapter.replaced:
            value = _numbers(adapter.replaced[name], name)
            value = value.T if slot.transposed else value
            leaf = jnp.asarray(value) if slot.layer is None else leaf.at[slot.layer].set(value)
    products = {
        slot.layer: (name, adapter.low_rank[name])
        for name, slot in changed.items()
        if name in adapter.low_rank
    }
    if not products:
        return leaf
    if None in products:  # a leaf that is not a stack
        return _add(leaf[None], {0: products[None]})[0]
    return _add(leaf, {layer: product for layer, product in products.items() if layer is not None})


def _add(stack: jax.Array, products: dict[int, tuple[str, LowRank]]) -> jax.Array:
    """A stack [L, in, out] with the products that some of its layers get."""
    layers, inputs, outputs = stack.shape
    rank = max(product.a.shape[0] for _, product in products.values())
    a = np.zeros((layers, inputs, rank), np.float32)
    b = np.zeros((layers, rank, outputs), np.float32)
    scale = np.zeros((layers, 1, 1), np.float32)
    magnitude = np.ones((layers, 1, outputs), np.float32)
    has_magnitude = np.zeros((layers, 1, 1), bool)
    for layer, (name, product) in products.items():
        size = product.a.shape[0]
        a[layer, :, :size] = _numbers(product.a, name).T
        b[layer, :size] = _numbers(product.b, name).T
        scale[layer] = product.scale
        if product.magnitude is not None:
            magnitude[layer, 0] = _numbers(product.magnitude, name)
            has_magnitude[layer] = True
    merged = stack + scale * jnp.matmul(a, b, precision="highest")
    if not has_magnitude.any():
        return merged
    norm = jnp.sqrt(jnp.sum(merged * merged, axis=1, keepdims=True))
    return jnp.where(has_magnitude, merged * (magnitude / norm), merged)


def _numbers(tensor: LazyTensor, name: str) -> np.ndarray:
    return cast(tensor.read(), FLOAT32, tensor.describe(f"the adapter of {name}"))
