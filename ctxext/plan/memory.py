"""Bytes that one device holds at the peak of a training step, from the structure of the step.

What is held when (full rematerialisation, P parameters cut by fsdp x seq x tensor, b T tokens a device):

    always      parameters and two moments of Adam, float32: 12 P; frozen parameters in the compute dtype: 2 P; on GPUs
                what `turned_bytes` says
    forward     the input of every layer: 2 L b T D (without rematerialisation: all that a layer saves)
    loss        a chunk of logits, float32, and its gradient; the output projection, gathered, and its gradient
    backward    gradients 4 P, once more with accumulation; one layer recomputed, at its MLP or at its attention,
                whichever holds more: `mlp_bytes`, `attention_bytes`; that layer's matrices, gathered

The peak is the larger of loss and backward; both contain what comes above them.
"""

import dataclasses

from ctxext.attention.kernels import HOLDS_SCORES
from ctxext.model.config import LlamaConfig
from ctxext.model.loss import CHUNK, MLP_TOKENS
from ctxext.plan.job import Job, count, layers


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device by what holds them: throughout, and at the two moments that can be the peak."""

    always: dict[str, int]
    loss: dict[str, int]
    backward: dict[str, int]

    @property
    def at_peak(self) -> dict[str, int]:
        """Everything held at the peak."""
        return self.always | max(self.loss, self.backward, key=lambda parts: sum(parts.values()))

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.at_peak.values())


def memory(job: Job, platform: str) -> Memory:
    """What a training step holds on each device of a platform ("tpu", "gpu", "cpu"), bytes."""
    config, trees, tokens = job.config, job.trees, job.tokens
    D, V, tensor = config.hidden_size, config.vocab_size, job.sizes["tensor"]
    trained, gathers = job.bytes(trees.trained), job.sizes["fsdp"] * job.sizes["seq"] > 1
    always = {
        "trained parameters": trained,
        "optimiser state": job.bytes(trees.optimizer),
        "frozen parameters": job.bytes(trees.frozen),
        "matrices turned around": turned_bytes(job) if platform == "gpu" and gathers else 0,
    }
    saved = saved_bytes(config, job.width, tensor) if job.remat == "none" else D * job.width
    if job.remat == "attention":  # its output too, and the log-sum-exp of every head
        saved += config.num_attention_heads * (config.head_dim * job.width + 4) // tensor
    forward = {
        "saved activations" if job.remat == "none" else "inputs of layers": job.backward_layers
        * tokens
        * saved,
    }
    projection = V * D // tensor
    logits = min(CHUNK, tokens * V // tensor)
    return Memory(
        always,
        loss=forward
        | {
            "chunk of logits": logits * (8 + job.width),
            "output projection": projection * (job.width + 4 * ("lm_head" in trees.trained)),
            "hidden states": 4 * tokens * D * job.width,
        },
        backward=forward
        | {
            "gradients": trained * (2 if job.accumulate > 1 else 1),
            "one layer, going backward": max(
                mlp_bytes(job), attention_bytes(job), _dense_bytes(job)
            ),
            "matrices of a layer": _layer_parameters(job) * job.width // tensor if gathers else 0,
        },
    )


def turned_bytes(job: Job) -> int:
    """Bytes of o_proj and down_proj, all layers: what devices gather along a last dimension the GPU compiler keeps a
    second time, that dimension first."""
    return sum(
        job.bytes(tree, r"\b(o|down)_proj\.kernel$")
        for tree in (job.trees.trained, job.trees.frozen)
    )


def mlp_bytes(job: Job) -> int:
    """Bytes of one layer when the backward pass is at its MLP, which full rematerialisation runs in chunks.

    The inputs of both halves, normed too (4 D), q, k, v and the attention's output (2 N H + 2 K H), the output's
    gradient (D), and a norm in float32 (D) of every token; gate, up and their product with the gradients of these (6 F)
    of a chunk's.
    """
    config, tensor = job.config, job.sizes["tensor"]
    D, F = config.hidden_size, config.intermediate_size
    chunk = min(job.tokens, MLP_TOKENS) if job.remat != "none" else job.tokens
    return (
        job.tokens * (job.width * (5 * D + _heads(config) // tensor) + 4 * D)
        + chunk * job.width * 6 * F // tensor
    )


def attention_bytes(job: Job) -> int:
    """Bytes of one layer when the backward pass is at its attention.

    Inputs, normed too, and gradients of both (6 D), a norm in float32 (D), q, k, v and the output with the gradients of
    these (4 N H + 4 K H); where devices share a sequence, keys and values under way and their gradients (4 K H) too.
    """
    config, tensor = job.config, job.sizes["tensor"]
    ring = 4 * config.num_key_value_heads * config.head_dim if job.sizes["seq"] > 1 else 0
    return job.tokens * (
        job.width * (6 * config.hidden_size + (2 * _heads(config) + ring) // tensor)
        + 4 * config.hidden_size
    )


def _dense_bytes(job: Job) -> int:
    """The moment of attention instead, where a kernel holds T x T scores and their gradient in float32; 0 elsewhere."""
    config, tensor = job.config, job.sizes["tensor"]
    if job.kernel not in HOLDS_SCORES:
        return 0
    scores = 8 * config.num_attention_heads // tensor * job.seq_len
    return job.tokens * (scores + job.width * (5 * config.hidden_size + _heads(config) // tensor))


def saved_bytes(config: LlamaConfig, width: int, tensor: int) -> int:
    """Bytes a token that every layer keeps for the backward pass without rematerialisation.

    As in `mlp_bytes`, but of the MLP gate and up alone (2 F), and two float32 of each norm (4 D).
    """
    D, F = config.hidden_size, config.intermediate_size
    return width * (5 * D + (_heads(config) + 2 * F) // tensor) + 16 * D


def _heads(config: LlamaConfig) -> int:
    return 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim


def cache_bytes(job: Job, slots: int) -> int:
    """Keys and values of a batch of `slots` tokens a row while generating, on one device: 2 L B S K H numbers."""
    config, rows = job.config, -(-job.batch_size // job.row_shards)
    heads = -(-config.num_key_value_heads // job.sizes["tensor"])
    return 2 * config.num_hidden_layers * rows * slots * heads * config.head_dim * job.width


def _layer_parameters(job: Job) -> int:
    """Numbers in one layer, of the segment that has most."""
    sizes: dict[str, int] = {}
    for tree in (job.trees.trained, job.trees.frozen):
        for name, stack in tree.get("segments", {}).items():
            sizes[name] = sizes.get(name, 0) + count(stack) // layers(stack)
    return max(sizes.values())
