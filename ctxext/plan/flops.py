"""Floating-point operations of a training step, product by product, 2 per multiply-add.

The rule of thumb of 6 P per token (arXiv 2001.08361) is the part of the matrices, without
embeddings. Attention comes on top: 4 N H per visible pair of tokens and layer, for exactly the
pairs that the masks of the method leave visible in a row of one text. Of rows that hold several, as
packed chats and short documents, this is an upper bound: their texts do not see each other, and how
long they are is not known before the data is read. An MFU of such rows is too high by as much.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from ctxext.attention.heads import head_sets
from ctxext.attention.kernels import HOLDS_SCORES, TABLE
from ctxext.attention.length import pieces_of_any_length
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
    """The part of all that attention's scores and values take."""
    loss: int = 0
    """The other passes of the loss, and logits that it computes again."""

    @property
    def model(self) -> int:
        """Everything but what is recomputed, which is what MFU counts (arXiv 2204.02311)."""
        return self.forward + self.backward + self.loss

    @property
    def total(self) -> int:
        """Everything, with what is recomputed."""
        return self.model + self.recomputed


def step_flops(job: Job, *, all_pairs: bool = False) -> Flops:
    """Operations of one optimiser step.

    all_pairs: attention computes every (query, key) pair, by default the visible ones.
    """
    config = job.config
    trained = job.trees.trained
    of_layers = _pairs_of_layers(job, job.seq_len, all_pairs=all_pairs)
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
        job.remat == "attention" and not _keeps_attention(job)
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

    of_loss = (job.loss.output_projections - 1) * projection
    attention_of_loss = 0
    # A teacher has neither logits nor adapters.
    of_forward = L * matrices if job.loss.has_teacher else forward - attention(L)
    for length, passes in job.loss.forward_passes(job.lengths).items():
        of_loss += passes * length * of_forward // job.seq_len
        of_windows = _pairs_of_layers(job, length, all_pairs=all_pairs)
        attention_of_loss += passes * per_pair * sum(of_windows)
    layer_gradients = 2 * _trained_matrices(trained.get("segments", {}), config) * tokens
    of_trained = (L + backward_layers) * matrices + 2 * adapters + layer_gradients
    recomputed_for_loss = 0
    for length, passes in job.loss.short_passes(job.lengths).items():
        of_loss += passes * length * of_trained // job.seq_len
        recomputed_for_loss += passes * length * recomputed // job.seq_len
        of_windows = _pairs_of_layers(job, length, all_pairs=all_pairs)
        in_backward = sum(of_windows[L - backward_layers :])
        attention_of_loss += passes * per_pair * (sum(of_windows) + 2 * in_backward)
    return Flops(
        forward=forward,
        backward=backward,
        recomputed=recomputed + scores + recomputed_for_loss,
        attention=attention(L)
        + (2 + recomputes_attention) * of_backward
        + scores
        + attention_of_loss,
        loss=of_loss + attention_of_loss,
    )


def _keeps_attention(job: Job) -> bool:
    """Whether remat "attention" finds the outputs of attention; so it is said of "auto" too."""
    if job.kernel not in TABLE:
        return True
    pieces = pieces_of_any_length(job.attention)
    layers = job.config.layers
    num_heads = (job.config.num_attention_heads, job.config.num_key_value_heads)
    return all(
        TABLE[job.kernel].names_output(heads.of_pieces(layers.masks(pieces, kind)))
        for kind in range(len(layers.kinds))
        for heads in head_sets(pieces, *num_heads)
    )


def _pairs_of_layers(job: Job, seq_len: int, *, all_pairs: bool) -> list[int]:
    """(query, key) pairs of a row of `seq_len` tokens, layer by layer: all, or the visible ones."""
    if all_pairs:
        return [seq_len**2] * len(job.config.layer_kinds)
    kinds = {
        kind: visible_pairs(job.attention, seq_len, kind.window) for kind in job.config.layers.kinds
    }
    return [kinds[kind] for kind in job.config.layer_kinds]


def seconds_at_peak(
    experiment: Experiment, config: LlamaConfig, device_kind: str, devices: int
) -> float | None:
    """Least time of a step: forward and backward FLOPs / (devices x peak bfloat16 FLOP/s).

    MFU is this over the time that a step takes (arXiv 2204.02311, appendix B). None for devices of
    unknown peak, for chips that may be one device or two, which their kind does not say, and for
    float32, which has another peak.
    """
    device = of_kind(device_kind)
    if device is None or device.flops is None or device.per_chip > 1:
        return None
    if experiment.train.dtype != "bfloat16":
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
