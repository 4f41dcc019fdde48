"""Segments of a parameter tree: stacks of equal layers, each run by one scan, or single layers."""

from typing import Any

import jax
import numpy as np

from ctxext.model.quantized import has_quantized


def segment_sizes(params: dict[str, Any]) -> tuple[int, ...]:
    """The number of layers of each segment."""
    segments = params["segments"]
    # By number: the keys of a pytree come back as "0", "1", "10", "2".
    names = [str(i) for i in range(len(segments))]
    return tuple(segments[name]["input_layernorm"]["weight"].shape[0] for name in names)


def layers_apart(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters with every layer as its own segment, if all are in one CPU's memory.

    They are views: of a stack, XLA on CPU copies what a product reads, which takes as long as all
    the rest of decoding a token. Elsewhere the parameters are returned as they are, and so are
    quantized ones: XLA would dequantize all layers before the loop over tokens, and keep them.
    """
    if has_quantized(params) or not all(
        _on_one_cpu(leaf) for leaf in jax.tree.leaves(params["segments"])
    ):
        return params

    def view(leaf: jax.Array, layer: int) -> jax.Array:
        return jax.device_put(np.asarray(leaf)[layer : layer + 1], may_alias=True)

    layers = [
        jax.tree.map(lambda leaf, layer=layer: view(leaf, layer), params["segments"][str(i)])
        for i, size in enumerate(segment_sizes(params))
        for layer in range(size)
    ]
    return {**params, "segments": {str(i): layer for i, layer in enumerate(layers)}}


def _on_one_cpu(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return False
    devices = leaf.devices()
    return len(devices) == 1 and all(device.platform == "cpu" for device in devices)
