"""Bytes that one device holds at the peak of a training step, from the structure of the step.

With full rematerialisation, P parameters cut by fsdp x seq x tensor, and b T tokens per device:

    always      parameters and two moments of Adam, float32: 12 P; frozen parameters in the compute
                dtype: 2 P, or quantized, and those of a teacher (`losses.Loss.has_teacher`); on
                GPUs also `transposed_bytes`
    forward     the input of every layer: 2 L b T D (without rematerialisation: `saved_bytes`;
                with "offload": of two layers, one on its way, and all L in the host's memory)
    loss        a chunk of logits, float32, and its gradient; the output projection, gathered, and
                its gradient
    backward    gradients 4 P, twice with accumulation; one layer, recomputed, at its MLP or at its
                attention, whichever holds more: `mlp_bytes`, `attention_bytes`; the matrices of
                that layer, gathered, or one of them, dequantized

The peak is the larger of loss and backward; both contain what is held always and from the forward
pass.
"""

import dataclasses
import math

from ctxext.attention.kernels import HOLDS_SCORES
from ctxext.model.config import LlamaConfig
from ctxext.model.loss import CHUNK, MLP_TOKENS
from ctxext.model.quantized import is_quantized, tree_leaves
from ctxext.plan.job import Job, count, num_layers


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device by their use: throughout, and at the two moments that can be the peak."""

    always: dict[str, int]
    loss: dict[str, int]
    backward: dict[str, int]
    host: int = 0
    """Bytes in the memory of the host for this device, from the forward to the backward pass."""

    @property
    def at_peak(self) -> dict[str, int]:
        """Everything held at the peak."""
        return self.always | max(self.loss, self.backward, key=lambda parts: sum(parts.values()))

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.at_peak.values())


def memory(job: Job, platform: str) -> Memory:
    """The bytes that a training step holds on each device of a platform ("tpu", "gpu", "cpu")."""
    config = job.config
    trees = job.trees
    tokens = job.tokens
    D, V = config.hidden_size, config.vocab_size
    tensor = job.sizes["tensor"]
    trained = job.bytes(trees.trained)
    gathers = job.sizes["fsdp"] * job.sizes["seq"] > 1
    always = {
        "trained parameters": trained,
        "optimiser state": job.bytes(trees.optimizer),
        "frozen parameters": job.bytes(trees.frozen),
        "teacher": job.bytes(trees.teacher),
        "transposed matrices": transposed_bytes(job) if platform == "gpu" and gathers else 0,
    }

    saved = saved_bytes(config, job.width, tensor) if job.remat == "none" else D * job.width
    if job.remat == "attention":
        # Its output too, and the log-sum-exp of every head.
        saved += config.num_attention_heads * (config.head_dim * job.width + 4) // tensor
    saved_name = "saved activations" if job.remat == "none" else "inputs of layers"
    offloads = job.remat == "offload"
    kept_layers = min(2, job.backward_layers) if offloads else job.backward_layers
    forward = {
        saved_name: kept_layers * tokens * saved,
        "quantized kernels, saved": _quantized_bytes(job) if job.remat == "none" else 0,
        "passes of the loss": _loss_bytes(job, kept_layers * saved),
    }

    projection = V * D // tensor
    logits = min(CHUNK, tokens * V // tensor)
    loss = {
        "chunk of logits": logits * (8 + job.width),
        "output projection": projection * (job.width + 4 * ("lm_head" in trees.trained)),
        "hidden states": 4 * tokens * D * job.width,
    }
    backward = {
        "gradients": trained * (2 if job.accumulate > 1 else 1),
        "backward pass of one layer": max(mlp_bytes(job), attention_bytes(job), _scores_bytes(job)),
        "matrices of a layer": _layer_parameters(job) * job.width // tensor if gathers else 0,
        "dequantized matrix": 0 if gathers else _largest_quantized(job) * job.width // tensor,
    }
    host = job.backward_layers * tokens * saved if offloads else 0
    return Memory(always, loss=forward | loss, backward=forward | backward, host=host)


def transposed_bytes(job: Job) -> int:
    """Bytes of o_proj and down_proj of all layers.

    The GPU compiler keeps a second copy, transposed, of matrices that devices gather along the last
    dimension.
    """
    pattern = r"\b(o|down)_proj\.kernel$"
    return job.bytes(job.trees.trained, pattern) + job.bytes(job.trees.frozen, pattern)


def _quantized_bytes(job: Job) -> int:
    """Bytes of quantized kernels, of which the scan over layers saves a copy if none recomputes."""
    return job.bytes(job.trees.frozen, r"\bkernel\.")


def _largest_quantized(job: Job) -> int:
    """Entries of the largest quantized matrix of a layer, 0 if none is quantized."""
    kernels = [leaf for leaf in tree_leaves(job.trees.frozen) if is_quantized(leaf)]
    return max((math.prod(kernel.shape[1:]) for kernel in kernels), default=0)


def mlp_bytes(job: Job) -> int:
    """Bytes of one layer when the backward pass is at its MLP, which remat runs in chunks.

    Of every token: the inputs of both halves, before and after the norm (4 D), q, k, v and the
    attention's output (2 N H + 2 K H), the gradient of the layer's output (D), and a norm in
    float32 (D). Of the tokens of a chunk: gate, up and their product, with their gradients (6 F);
    without a gate, up and its activation (4 F).
    """
    config = job.config
    D, F = config.hidden_size, config.intermediate_size
    tensor = job.sizes["tensor"]
    hidden = 6 if config.parts.gated else 4
    chunk = job.tokens if job.remat == "none" else min(job.tokens, MLP_TOKENS)
    per_token = job.width * (5 * D + _heads(config) // tensor) + 4 * D
    return job.tokens * per_token + chunk * job.width * hidden * F // tensor


def attention_bytes(job: Job) -> int:
    """Bytes of one layer when the backward pass is at its attention.

    The inputs of both halves, before and after the norm, with two gradients (6 D), a norm in
    float32 (D), and q, k, v and the output with their gradients (4 N H + 4 K H). Where devices
    share a sequence, also keys and values in transit with their gradients (4 K H).
    """
    config = job.config
    D = config.hidden_size
    tensor = job.sizes["tensor"]
    ring = 4 * config.num_key_value_heads * config.head_dim if job.sizes["seq"] > 1 else 0
    per_token = job.width * (6 * D + (2 * _heads(config) + ring) // tensor) + 4 * D
    return job.tokens * per_token


def _scores_bytes(job: Job) -> int:
    """`attention_bytes` of a kernel that holds T x T float32 scores and their gradient, else 0."""
    if job.kernel not in HOLDS_SCORES:
        return 0
    config = job.config
    tensor = job.sizes["tensor"]
    scores = 8 * config.num_attention_heads // tensor * job.seq_len
    return job.tokens * (scores + job.width * (5 * config.hidden_size + _heads(config) // tensor))


def saved_bytes(config: LlamaConfig, width: int, tensor: int) -> int:
    """Bytes per token that each layer saves for the backward pass without rematerialisation.

    As in `mlp_bytes`, but only gate and up of the MLP (2 F, or F without a gate), and two
    float32 of each norm (4 D).
    """
    D, F = config.hidden_size, config.intermediate_size
    hidden = 2 if config.parts.gated else 1
    return width * (5 * D + (_heads(config) + hidden * F) // tensor) + 16 * D


def _heads(config: LlamaConfig) -> int:
    """Entries of q, k, v and the attention's output, per token."""
    return 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim


def cache_bytes(job: Job, slots: int) -> int:
    """Bytes of keys and values on one device while generating, `slots` tokens per row.

    2 L B S K H numbers of the batch that the mesh divides.
    """
    config = job.config
    rows = -(-job.batch_size // job.row_shards)
    heads = -(-config.num_key_value_heads // job.sizes["tensor"])
    return 2 * config.num_hidden_layers * rows * slots * heads * config.head_dim * job.width


def _loss_bytes(job: Job, saved: int) -> int:
    """Bytes that the further trained passes of the loss hold until the backward pass.

    saved: per token, as in the pass over whole rows. Also hidden states, see `Loss.held_states`.
    """
    config = job.config
    states = job.loss.held_states(config.num_hidden_layers) * config.hidden_size * job.width
    total = 0
    for length, passes in job.loss.short_passes(job.lengths).items():
        tokens = job.tokens * length // job.seq_len
        total += tokens * (passes * saved + states)
    return total


def _layer_parameters(job: Job) -> int:
    """Parameters of one layer, in the segment where a layer has most."""
    sizes: dict[str, int] = {}
    for tree in (job.trees.trained, job.trees.frozen):
        for name, stack in tree.get("segments", {}).items():
            sizes[name] = sizes.get(name, 0) + count(stack) // num_layers(stack)
    return max(sizes.values())
