"""Describe what a run would do, before anything is allocated."""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from ctxext import loading, requirements
from ctxext.attention.kernels import explain
from ctxext.attention.request import requests_of
from ctxext.experiment import Experiment
from ctxext.losses import CrossEntropy
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, param_shapes
from ctxext.model.quantized import cast_floats
from ctxext.plan.job import count
from ctxext.rope import RopeScaling, rope_at
from ctxext.training import evaluation_set
from ctxext.training.untrained import beyond_rows


def dry_run(
    experiment: Experiment,
    config: LlamaConfig,
    scaling: RopeScaling,
    *,
    unreadable: Sequence[str] = (),
) -> str:
    """Shapes, parameters, method, batch and steps of an experiment as text; allocates nothing.

    unreadable: sentences of `requirements.unreadable`, which reads the beginnings of all texts.
    """
    requirements.check_context(experiment, num_devices=len(jax.devices()))
    context = loading.base_context(experiment)
    scaling = experiment.effective_scaling(scaling)
    facts = [
        *_base_facts(experiment, config),
        ("context", context.text(scaling)),
        *_method_facts(experiment, config, scaling),
        *_step_facts(experiment, config, beyond_rows(experiment, context, scaling)),
        *_evaluation_facts(experiment),
        *(("doubtful", text) for text in requirements.doubts(experiment)),
        *(("missing", text) for text in requirements.missing(experiment)),
        *(("unreadable", text) for text in unreadable),
    ]
    lines = [f"{name:<14} {text}" for name, text in facts]
    lines.append("shapes")
    for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(config)):
        lines.append(f"  {'.'.join(str(key.key) for key in path):<46} {list(leaf.shape)}")
    return "\n".join(lines)


def _base_facts(experiment: Experiment, config: LlamaConfig) -> Iterator[tuple[str, str]]:
    init = experiment.init or "from scratch"
    window = config.max_position_embeddings
    num_parameters = count(param_shapes(config))
    trained, frozen = experiment.trainable.shapes(config)
    yield "experiment", f"{experiment.name} ({experiment.fingerprint})"
    yield "base", f"{init}, window {window}, {config.positions}"
    yield "parameters", f"{num_parameters:,}, {4 * num_parameters / 1e9:.2f} GB in float32"
    yield "trained", f"{label([experiment.trainable])}: {count(trained):,} parameters"
    if experiment.loss != CrossEntropy():
        yield "loss", label([experiment.loss])
    yield "mesh", f"{experiment.mesh.text}; state {_state_bytes(experiment, trained, frozen)}"


def _method_facts(
    experiment: Experiment, config: LlamaConfig, scaling: RopeScaling
) -> Iterator[tuple[str, str]]:
    attention = label([experiment.attention])
    if experiment.evaluated_attention != experiment.attention:
        attention += f" (after training {label([experiment.evaluated_attention])})"
    positions = label([experiment.positions])
    yield "method", f"{label([scaling])}, {attention} attention, {positions} positions"
    config.check_scaling(scaling)
    if not config.layers.rotates:
        return
    rope = rope_at(scaling, config.rope_base(), experiment.train.seq_len)
    fastest, slowest = rope.inv_freq[0], rope.inv_freq[-1]
    yield (
        "",
        f"attention factor {rope.attention_factor:.6g}, inv_freq {fastest:.4g} .. {slowest:.4g}",
    )


def _step_facts(
    experiment: Experiment, config: LlamaConfig, untrained: str
) -> Iterator[tuple[str, str]]:
    """untrained: a sentence about contexts that the rows do not train."""
    train = experiment.train
    windows = train.seq_len / config.max_position_embeddings
    rows = f"{train.batch_size} x {train.accumulate} rows"
    tokens = train.steps * train.batch_size * train.accumulate * train.seq_len
    yield "batch", f"{rows} of {train.seq_len} tokens ({windows:g} windows)"
    if untrained and train.steps:
        yield "", untrained
    yield "steps", f"{train.steps}, {tokens:,} tokens, compute in {train.dtype}"
    yield "kernel", _kernel(experiment, config)


def _evaluation_facts(experiment: Experiment) -> Iterator[tuple[str, str]]:
    num_zero_shot = len(experiment.zero_shot)
    baselines = ", ".join(label([rope]) for rope in experiment.baselines)
    export = experiment.export
    yield (
        "evaluations",
        f"{len(experiment.evals)} on the result, {num_zero_shot} zero-shot methods before",
    )
    train = experiment.train
    if train.eval_every and train.steps:
        measures = evaluation_set.measures(experiment, loading.base_context(experiment))
        yield "", f"every {train.eval_every} steps of training: {', '.join(measures)}"
    yield (
        "baselines",
        f"{baselines} with the same training" if baselines else "no others are trained",
    )
    yield "export", f"{export.to} {export.dtype}" if export else "none"


def _kernel(experiment: Experiment, config: LlamaConfig) -> str:
    """The kernel that training will use on this machine, and why."""
    train = experiment.train
    layers = config.layers
    traced_kind = 0 if len(layers.kinds) == 1 else jnp.int32(0)  # as in a scan over the layers
    requests = requests_of(
        experiment.attention,
        layers,
        traced_kind,
        (config.num_attention_heads, config.num_key_value_heads),
        platform=jax.default_backend(),
        seq_len=train.seq_len,
        dtype=train.dtype,
        packed=True,  # a training batch always has segments
        cut=experiment.mesh.seq != 1,
    )
    # Sets of heads may be evaluated by different kernels.
    return "; ".join(dict.fromkeys(explain(train.kernel, request) for request in requests))


def _state_bytes(experiment: Experiment, trained: Params, frozen: Params) -> str:
    """The size of parameters, optimiser state and gradients, per device if the mesh is fixed.

    A trained parameter takes 16 bytes: itself, two moments and its gradient in float32; 20 if
    gradients are accumulated. A frozen one is kept once, in the compute dtype or quantized.
    """
    mesh = experiment.mesh
    bytes_per_trained = 16 if experiment.train.accumulate == 1 else 20
    held = jax.tree.leaves(cast_floats(frozen, experiment.train.dtype))
    frozen_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in held)
    size = bytes_per_trained * count(trained) + frozen_bytes
    if -1 in (mesh.fsdp, mesh.seq, mesh.tensor):
        return f"{size / 1e9:.1f} GB, divided over all devices"
    per_device = size / (mesh.fsdp * mesh.seq * mesh.tensor)
    return f"{per_device / 1e9:.1f} GB per device, plus activations"
