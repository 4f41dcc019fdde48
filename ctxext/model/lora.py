"""Low-rank adapters, leaves beside a kernel: y = x W + s (drop(x) A) B (arXiv 2106.09685).

Trees in, trees out; kernels are [L, in, out], A is `lora_a` [L, in, R], B is `lora_b` [L, R, out]. The model
multiplies; here adapters are made, made ready for a training step, and merged.
"""

import zlib
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ctxext.model.decoder import Params

Change = Callable[[str, Params], Params]


def _over(
    params: Params, targets: Collection[str], change: Change, path: tuple[str, ...] = ()
) -> Params:
    """The tree with `change(path, linear)` in place of every linear that `targets` names."""
    if path and path[-1] in targets:
        return change(".".join(path), params)
    return {
        key: _over(value, targets, change, (*path, key)) if isinstance(value, dict) else value
        for key, value in params.items()
    }


def _folded(key: Key[Array, ""], path: str) -> Key[Array, ""]:
    return jax.random.fold_in(
        key, zlib.crc32(path.encode())
    )  # by name: another choice of targets changes no draw


def add_adapters(params: Params, targets: Collection[str], rank: int, seed: int) -> Params:
    """The tree with adapters that change nothing yet: A uniform within 1 / sqrt(in), B zero."""

    def add(path: str, linear: Params) -> Params:
        layers, inputs, outputs = linear["kernel"].shape
        bound = inputs**-0.5
        a = jax.random.uniform(
            _folded(jax.random.key(seed), path), (layers, inputs, rank), minval=-bound, maxval=bound
        )
        return {**linear, "lora_a": a, "lora_b": jnp.zeros((layers, rank, outputs))}

    return _over(params, targets, add)


def materialize(
    params: Params, targets: Collection[str], scale: float, rate: float, key: Key[Array, ""] | None
) -> Params:
    """The tree as a training step runs it: s B in place of B and, with a `key`, what the linear needs for dropout.

    Each layer of each module draws from a key of its own, which depends on nothing but `key`, layer and name, and from
    it for each token by its place in the batch: neither chunks nor devices change a draw.
    """

    def prepare(path: str, linear: Params) -> Params:
        out = {**linear, "lora_b": scale * linear["lora_b"]}
        if key is not None:
            layers = jnp.arange(linear["lora_b"].shape[0])
            out["lora_key"] = jax.vmap(jax.random.fold_in, (None, 0))(_folded(key, path), layers)
            out["lora_keep"] = jnp.full(layers.shape, 1 - rate, jnp.float32)
        return out

    return _over(params, targets, prepare)


def merge(params: Params, targets: Collection[str], scale: float) -> Params:
    """The tree without adapters: W + s A B, float32."""

    def merge_one(_: str, linear: Params) -> Params:
        a, b, kernel = (linear[name].astype(jnp.float32) for name in ("lora_a", "lora_b", "kernel"))
        rest = {name: value for name, value in linear.items() if name not in ("lora_a", "lora_b")}
        return {**rest, "kernel": kernel + scale * jnp.matmul(a, b, precision="highest")}

    return _over(params, targets, merge_one)
