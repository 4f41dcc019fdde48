"""Floating-point operations of a training step, counted matrix product by matrix product (2 per multiply-add).

The rule of thumb 6 P a token (arXiv 2001.08361) is the matrix part without embeddings; attention comes on top:
4 N H a visible pair of tokens and layer, exactly the pairs that the method's masks leave visible.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ctxext.attention import Attention, Mask
from ctxext.attention.kernels import HOLDS_SCORES, UNNAMED_OUTPUT
from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.plan.accelerators import of_kind
from ctxext.plan.job import Job

LEAF = 256  # pairs of blocks this small are counted one by one


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of a whole step, all devices together."""

    forward: int
    backward: int
    recomputed: int
    attention: int
    """Of the three together, the part that attention's scores and values take."""

    @property
    def model(self) -> int:
        """Forward and backward pass, which is what MFU counts (arXiv 2204.02311)."""
        return self.forward + self.backward

    @property
    def total(self) -> int:
        """With what is computed a second time."""
        return self.model + self.recomputed


def step_flops(job: Job, pairs: int | None = None) -> Flops:
    """Operations of one optimiser step; pairs: (query, key) pairs of a row, by default the visible ones."""
    config, trained = job.config, job.trees.trained
    tokens = job.batch_size * job.accumulate * job.seq_len
    pairs = visible_pairs(job.attention, job.seq_len) if pairs is None else pairs
    attention = (
        4 * config.num_attention_heads * config.head_dim * pairs * job.batch_size * job.accumulate
    )
    matrices, projection = (
        2 * layer_matrices(config) * tokens,
        2 * config.vocab_size * config.hidden_size * tokens,
    )
    adapters, weights = 2 * _adapters(trained) * tokens, 2 * _matrices(trained, config) * tokens
    L, back = config.num_hidden_layers, job.backward_layers
    forward = L * (matrices + attention) + projection + adapters
    # Backward: gradients of every layer's inputs, none below the first trained layer, and of what is trained.
    backward = back * (matrices + 2 * attention) + projection + adapters + weights
    # Again: with remat the layers, up to their last product, whose result no gradient needs; tiles of scores (half of
    # attention) in any case.
    last = 2 * config.hidden_size * config.intermediate_size * tokens
    attends_again = job.remat == "full" or (
        job.remat == "attention" and job.kernel in UNNAMED_OUTPUT
    )
    layers_again = (
        back * (matrices - last + attends_again * attention) + adapters
        if job.remat != "none"
        else 0
    )
    scores_again = back * attention // 2 if job.kernel not in HOLDS_SCORES else 0
    return Flops(
        forward,
        backward,
        layers_again + scores_again,
        (L + (2 + attends_again) * back) * attention + scores_again,
    )


def seconds_at_peak(
    experiment: Experiment, config: LlamaConfig, device_kind: str, devices: int
) -> float | None:
    """Least time of a step: forward and backward FLOPs / (devices x peak bfloat16 FLOP/s); MFU is this over the time
    it takes (arXiv 2204.02311, appendix B). None for devices of unknown peak and for float32, which has another."""
    device = of_kind(device_kind)
    if device is None or device.flops is None or experiment.train.dtype != "bfloat16":
        return None
    return step_flops(Job.of(experiment, config, devices)).model / (devices * device.flops)


def layer_matrices(config: LlamaConfig) -> int:
    """Numbers in the matrices of one layer."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    return D * 2 * (config.num_attention_heads + config.num_key_value_heads) * H + 3 * D * F


def visible_pairs(attention: Attention, seq_len: int) -> int:
    """(query, key) pairs of a row that see each other; for causal attention T (T + 1) / 2."""
    return sum(_visible(piece.mask, range(seq_len), range(seq_len)) for piece in attention.pieces())


def _visible(mask: Mask, query: range, key: range) -> int:
    if not query or not key:
        return 0
    some, every = mask.block(query, key)
    if not some or every:
        return len(query) * len(key) if every else 0
    if len(query) <= LEAF:
        return int(np.sum(mask.visible(np.array(query)[:, None], np.array(key)[None, :])))
    half, mid = query[len(query) // 2], key[len(key) // 2]
    quarters = [
        (q, k)
        for q in (range(query.start, half), range(half, query.stop))
        for k in (range(key.start, mid), range(mid, key.stop))
    ]
    return sum(_visible(mask, *quarter) for quarter in quarters)


def _leaves(tree: Any, *names: str) -> int:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return sum(int(np.prod(leaf.shape)) for path, leaf in found if path[-1].key in names)


def _matrices(trained: Any, config: LlamaConfig) -> int:
    """Numbers in trained matrices that multiply: no embedding, which is looked up, unless it is the projection too."""
    return _leaves(
        trained,
        "kernel",
        "lora_a",
        "lora_b",
        *(["embedding"] if config.tie_word_embeddings else []),
    )


def _adapters(tree: Any) -> int:
    return _leaves(tree, "lora_a", "lora_b")
