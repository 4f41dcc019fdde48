"""Floating-point operations of a training step, product by product, 2 per multiply-add.

The rule of thumb of 6 P per token (arXiv 2001.08361) is the part of the matrices, without
embeddings. Attention comes on top: 4 N H per visible pair of tokens and layer, for exactly the
pairs that the masks of the method leave visible.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ctxext.attention.kernels import HOLDS_SCORES, UNNAMED_OUTPUT
from ctxext.attention.visible import visible_pairs
from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.model.operations import layer_matrices
from ctxext.plan.accelerators import of_kind
from ctxext.plan.job import Job


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of a whole step, all devices together."""

    forward: int
    backward: int
    recomputed: int
    attention: int
    """The part of the three above that attention's scores and values take."""

    @property
    def model(self) -> int:
        """Forward and backward pass, which is what MFU counts (arXiv 2204.02311)."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """Everything, with what is recomputed."""
        return self.model + self.recomputed


def step_flops(job: Job, pairs: int | None = None) -> Flops:
    """Operations of one optimiser step.

    pairs: (query, key) pairs per row that attention computes, by default the visible ones.
    """
    config = job.config
    trained = job.trees.trained
    of_kinds = {
        kind: visible_pairs(job.attention, job.seq_len, kind.window) if pairs is None else pairs
        for kind in config.layers.kinds
    }
    of_layers = [of_kinds[kind] for kind in config.layer_kinds]
    rows = job.batch_size * job.accumulate
    tokens = rows * job.seq_len
    L = config.num_hidden_layers
    per_pair = 4 * config.num_attention_heads * config.head_dim * rows

    def attention(layers: int) -> int:
        """Of the last `layers` layers."""
        return per_pair * sum(of_layers[L - layers :])

    matrices = 2 * layer_matrices(config) * tokens
    projection = 2 * config.vocab_size * config.hidden_size * tokens
    adapters = 2 * _adapters(trained) * tokens
    forward = L * matrices + attention(L) + projection + adapters

    # The backward pass: gradients of the inputs of the layers from the first trained one on, and
    # of the trained weights.
    backward_layers = job.backward_layers
    weight_gradients = 2 * _trained_matrices(trained, config) * tokens
    of_backward = attention(backward_layers)
    backward = backward_layers * matrices + 2 * of_backward
    backward += projection + adapters + weight_gradients

    # What it recomputes: with remat the layers, except their last product, whose result no gradient
    # needs; and in any case the scores, half of attention, of kernels that do not hold them.
    recomputes_attention = job.remat in ("full", "offload") or (
        job.remat == "attention" and job.kernel in UNNAMED_OUTPUT
    )
    recomputed = 0
    if job.remat != "none":
        last_product = 2 * config.hidden_size * config.intermediate_size * tokens
        if config.parts.parallel:  # nothing in the layer reads the output of attention either
            heads = config.num_attention_heads * config.head_dim
            last_product += 2 * config.hidden_size * heads * tokens
        recomputed = backward_layers * (matrices - last_product) + adapters
        recomputed += recomputes_attention * of_backward
    scores = 0 if job.kernel in HOLDS_SCORES else of_backward // 2
    return Flops(
        forward=forward,
        backward=backward,
        recomputed=recomputed + scores,
        attention=attention(L) + (2 + recomputes_attention) * of_backward + scores,
    )


def seconds_at_peak(
    experiment: Experiment, config: LlamaConfig, device_kind: str, devices: int
) -> float | None:
    """Least time of a step: forward and backward FLOPs / (devices x peak bfloat16 FLOP/s).

    MFU is this over the time that a step takes (arXiv 2204.02311, appendix B). None for devices of
    unknown peak, and for float32, which has another peak.
    """
    device = of_kind(device_kind)
    if device is None or device.flops is None or experiment.train.dtype != "bfloat16":
        return None
    return step_flops(Job.of(experiment, config, devices)).model / (devices * device.flops)


def _trained_matrices(trained: Any, config: LlamaConfig) -> int:
    """Entries of the trained matrices that multiply.

    The embedding is looked up; it multiplies only where it is the output projection too.
    """
    names = ["kernel", "lora_a", "lora_b"]
    if config.tie_word_embeddings:
        names.append("embedding")
    return _entries(trained, *names)


def _adapters(trained: Any) -> int:
    return _entries(trained, "lora_a", "lora_b")


def _entries(tree: Any, *names: str) -> int:
    """Entries of all leaves with one of these names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(int(np.prod(leaf.shape)) for path, leaf in leaves if path[-1].key in names)
