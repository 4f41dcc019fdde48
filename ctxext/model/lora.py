"""Low-rank adapters, leaves next to a kernel: y = x W + s (dropout(x) A) B (arXiv 2106.09685).

Trees in, trees out; kernels are [L, in, out], A is `lora_a` [L, in, R], B is `lora_b` [L, R, out].
The model multiplies; here adapters are added, prepared for a training step, and merged.
"""

import zlib
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ctxext.model.decoder import Params
from ctxext.model.quantized import dequantize_tree


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
    """The tree without adapters: W + s A B, float32. A quantized W is dequantized first."""

    def merge_one(_: str, linear: Params) -> Params:
        a, b, kernel = (linear[name].astype(jnp.float32) for name in ("lora_a", "lora_b", "kernel"))
        rest = {name: value for name, value in linear.items() if name not in ("lora_a", "lora_b")}
        return {**rest, "kernel": kernel + scale * jnp.matmul(a, b, precision="highest")}

    return _map_linears(merge_one, dequantize_tree(params), targets)


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
