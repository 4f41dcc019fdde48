"""Frozen kernels in few bits, one file per form; layers dequantize what they multiply by."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from ctxext.model.quantized.base import QuantizedKernel as QuantizedKernel
from ctxext.model.quantized.int8 import Int8
from ctxext.model.quantized.nf4 import NF4, NF4Double
from ctxext.parallel import distributed

Quantize = Literal["none", "int8", "nf4", "nf4-double"]
QUANTIZED: dict[str, type[QuantizedKernel]] = {"int8": Int8, "nf4": NF4, "nf4-double": NF4Double}
"""The forms by their names, which are the values of `Quantize`."""


def is_quantized(leaf: Any) -> bool:
    """True for a quantized kernel, which is a leaf of the parameter tree."""
    return isinstance(leaf, QuantizedKernel)


def has_quantized(tree: Any) -> bool:
    """True if a tree has quantized kernels."""
    return any(is_quantized(leaf) for leaf in tree_leaves(tree))


def bytes_held(tree: Any) -> tuple[int, int]:
    """(bytes of the quantized kernels of a tree, bytes that they would take in bfloat16)."""
    kernels = [leaf for leaf in tree_leaves(tree) if is_quantized(leaf)]
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kernels))
    return held, 2 * sum(math.prod(kernel.shape) for kernel in kernels)


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` that takes a quantized kernel as one leaf."""
    return jax.tree.map(function, tree, *rest, is_leaf=is_quantized)


def tree_leaves(tree: Any) -> list[Any]:
    """`jax.tree.leaves` that takes a quantized kernel as one leaf."""
    return jax.tree.leaves(tree, is_leaf=is_quantized)


def quantized_shapes(params: Any, quantize: Quantize) -> Any:
    """The tree, of arrays or shapes, with the shapes of quantized kernels in all layers.

    Embedding, norms, biases and the output projection stay as they are. Raises ValueError for sizes
    that cannot be quantized, naming the matrix.
    """
    if quantize == "none":
        return params
    form = QUANTIZED[quantize]

    def of_shape(path: tuple[Any, ...], leaf: Any) -> Any:
        if path[-1].key != "kernel" or is_quantized(leaf):
            return leaf
        try:
            return form.of_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(
                f"trainable.quantize {quantize}: {error}, and {path[-2].key} of this model has "
                f"{leaf.shape[1]}; choose int8 (--quantize int8)"
            ) from None

    segments = jax.tree_util.tree_map_with_path(of_shape, params["segments"], is_leaf=is_quantized)
    return {**params, "segments": segments}


def quantize_stack(
    shapes: QuantizedKernel, read_layer: Callable[[int], np.ndarray]
) -> QuantizedKernel:
    """A quantized stack in the form and the shardings of `shapes`.

    `read_layer(i)`: the kernel of a layer, float32 [in, out]. One of them, and the quantized stack,
    are in host memory. Each process quantizes all layers, because scales of scales belong to a
    whole matrix, and keeps what its devices hold.
    """
    stack = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    for layer in range(shapes.shape[0]):
        one = shapes.quantize(read_layer(layer))
        for whole, part in zip(jax.tree.leaves(stack), jax.tree.leaves(one), strict=True):
            whole[layer] = part

    def put(leaf: jax.ShapeDtypeStruct, whole: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, whole.__getitem__)

    return jax.tree.map(put, shapes, stack)


def hold(params: Any, shapes: Any) -> Any:
    """The parameters in the forms, dtypes and shardings of `shapes`: float kernels are quantized.

    A kernel that is quantized already stays as it is.
    """

    def hold_one(leaf: Any, shape: Any) -> Any:
        if is_quantized(leaf):
            return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), leaf, shape)
        if is_quantized(shape):
            return quantize_stack(shape, lambda layer: _float32(distributed.gather(leaf[layer])))
        return jax.device_put(leaf.astype(shape.dtype), shape.sharding)

    return tree_map(hold_one, params, shapes)


def _float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32)


def cast_floats(params: Any, dtype: Any) -> Any:
    """The tree, of arrays or shapes, with all but quantized kernels in another dtype."""

    def cast(leaf: Any) -> Any:
        if is_quantized(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(dtype=dtype)
        return leaf.astype(dtype)

    return tree_map(cast, params)
