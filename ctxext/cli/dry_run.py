"""Describe what a run would do, before anything is allocated."""

import math

import jax
import jax.numpy as jnp

from ctxext import requirements
from ctxext.attention.kernels import explain
from ctxext.attention.request import Request
from ctxext.experiment import Experiment
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import param_shapes
from ctxext.rope import RopeScaling, rope_at


def dry_run(experiment: Experiment, config: LlamaConfig, scaling: RopeScaling) -> str:
    """Shapes, parameters, method, batch and steps of an experiment as text; allocates nothing."""
    train = experiment.train
    window = config.max_position_embeddings
    leaves = jax.tree_util.tree_leaves_with_path(param_shapes(config))
    num_parameters = sum(math.prod(leaf.shape) for _, leaf in leaves)
    trained, frozen = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in experiment.trainable.shapes(config)
    )
    scaling = experiment.effective_scaling(scaling)
    rope = rope_at(scaling, config.rope_base(), train.seq_len)
    rows = train.batch_size * train.accumulate
    export = experiment.export
    facts = [
        ("experiment", f"{experiment.name} ({experiment.fingerprint})"),
        (
            "base",
            f"{experiment.init or 'from scratch'}, window {window}, theta {config.rope_theta:g}",
        ),
        ("parameters", f"{num_parameters:,}, {4 * num_parameters / 1e9:.2f} GB in float32"),
        ("trained", f"{label([experiment.trainable])}: {trained:,} parameters"),
        ("mesh", f"{experiment.mesh.text}; state {_state_bytes(experiment, trained, frozen)}"),
        (
            "method",
            f"{label([scaling])}, {label([experiment.attention])} attention, "
            f"{label([experiment.positions])} positions",
        ),
        (
            "",
            f"attention factor {rope.attention_factor:.6g}, inv_freq {rope.inv_freq[0]:.4g} .. "
            f"{rope.inv_freq[-1]:.4g}",
        ),
        (
            "batch",
            f"{train.batch_size} x {train.accumulate} rows of {train.seq_len} tokens "
            f"({train.seq_len / window:g} windows)",
        ),
        (
            "steps",
            f"{train.steps}, {train.steps * rows * train.seq_len:,} tokens, compute in "
            f"{train.dtype}",
        ),
        ("kernel", _kernel(experiment)),
        (
            "evaluations",
            f"{len(experiment.evals)} on the result, {len(experiment.zero_shot)} zero-shot methods "
            "before",
        ),
        (
            "baselines",
            f"{', '.join(label([rope]) for rope in experiment.baselines) or 'none'} with the same "
            "training",
        ),
        ("export", f"{export.to} {export.dtype}" if export else "none"),
        *(("missing", text) for text in requirements.missing(experiment)),
        *(("unreadable", text) for text in requirements.unreadable(experiment)),
    ]
    lines = [f"{name:<14} {text}" for name, text in facts]
    lines.append("shapes")
    for path, leaf in leaves:
        lines.append(f"  {'.'.join(str(key.key) for key in path):<46} {list(leaf.shape)}")
    return "\n".join(lines)


def _kernel(experiment: Experiment) -> str:
    """The kernel that training will use on this machine, and why."""
    train = experiment.train
    request = Request(
        masks=tuple(piece.mask for piece in experiment.attention.pieces()),
        platform=jax.default_backend(),
        seq_len=train.seq_len,
        dtype=train.dtype,
        packed=True,  # a training batch always has segments
        cut=experiment.mesh.seq != 1,
    )
    return explain(train.kernel, request)


def _state_bytes(experiment: Experiment, trained: int, frozen: int) -> str:
    """The size of parameters, optimiser state and gradients, per device if the mesh is fixed.

    A trained parameter takes 16 bytes: itself, two moments and its gradient in float32; 20 if
    gradients are accumulated. A frozen one is kept once, in the compute dtype.
    """
    mesh = experiment.mesh
    bytes_per_trained = 16 if experiment.train.accumulate == 1 else 20
    size = bytes_per_trained * trained + jnp.dtype(experiment.train.dtype).itemsize * frozen
    if -1 in (mesh.fsdp, mesh.seq, mesh.tensor):
        return f"{size / 1e9:.1f} GB, divided over all devices"
    per_device = size / (mesh.fsdp * mesh.seq * mesh.tensor)
    return f"{per_device / 1e9:.1f} GB per device, plus activations"
