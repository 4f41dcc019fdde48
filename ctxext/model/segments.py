"""Segments of a parameter tree: stacks of equal layers, run by a scan each, or layers by themselves."""

from typing import Any

import jax
import numpy as np


def segment_sizes(params: dict[str, Any]) -> tuple[int, ...]:
    """How many layers each segment has."""
    segments = params["segments"]  # by number: a pytree's keys come back as "0", "1", "10", "2"
    return tuple(
        segments[str(i)]["input_layernorm"]["weight"].shape[0] for i in range(len(segments))
    )


def layers_apart(params: dict[str, Any]) -> dict[str, Any]:
    """The same numbers, every layer a segment: views of arrays in the memory of one CPU; others come back as they are.

    There, XLA copies what a product reads of a stack, which is as much as a token costs otherwise.
    """
    if not all(_on_one_cpu(leaf) for leaf in jax.tree.leaves(params["segments"])):
        return params
    apart = [
        jax.tree.map(
            lambda leaf, n=n: jax.device_put(np.asarray(leaf)[n : n + 1], may_alias=True),
            params["segments"][str(i)],
        )
        for i, size in enumerate(segment_sizes(params))
        for n in range(size)
    ]
    return {**params, "segments": {str(i): layer for i, layer in enumerate(apart)}}


def _on_one_cpu(leaf: Any) -> bool:
    return (
        isinstance(leaf, jax.Array)
        and {device.platform for device in leaf.devices()} == {"cpu"}
        and len(leaf.devices()) == 1
    )
