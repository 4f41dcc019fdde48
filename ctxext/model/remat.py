"""Rematerialisation: what the backward pass recomputes of a layer, and where its input waits."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from ctxext.attention.tiles import SAVED_NAME

REMAT = ("none", "attention", "full", "offload")
"""Activations that the backward pass recomputes: none; each layer's but its attention's output;
all; all, while the inputs of the layers wait in the memory of the host."""
LAYER_INPUT = "layer_input"
"""The name by which "offload" finds the input of a layer."""

Step = Callable[[tuple[Any, Any], Any], tuple[tuple[Any, Any], Any]]
"""((x, cache), layer) -> ((x, cache), output), as `jax.lax.scan` calls it."""


def rematerialised(step: Step, remat: str) -> Step:
    """The step that recomputes what `remat` says in its backward pass.

    With "offload", the input of each layer is copied to the host in the forward pass and back in
    the backward pass (as in ALST, arXiv 2506.13996), so that a device holds those of two layers.
    Raises ValueError for an unknown `remat`.
    """
    if remat not in REMAT:
        raise ValueError(f"remat {remat!r} is not known; choose one of {', '.join(REMAT)}")
    if remat == "none":
        return step
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(*([SAVED_NAME] if remat == "attention" else []))
    if remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        )

    def named(carry: tuple[Any, Any], layer: Any) -> tuple[tuple[Any, Any], Any]:
        x, cache = carry
        return step((checkpoint_name(x, LAYER_INPUT), cache), layer)

    # No need to prevent CSE: inside a scan, the recomputation stays separate.
    return jax.checkpoint(named if remat == "offload" else step, prevent_cse=False, policy=policy)
