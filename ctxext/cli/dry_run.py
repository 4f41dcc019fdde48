"""What a run would do, said before anything is allocated."""

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
    shapes = param_shapes(config)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    count = sum(math.prod(leaf.shape) for _, leaf in leaves)
    trained, frozen = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in experiment.trainable.shapes(config)
    )
    rope = experiment.effective_scaling(scaling)
    table = rope_at(rope, config.rope_base(), experiment.train.seq_len)
    train, window = experiment.train, config.max_position_embeddings
    rows = train.batch_size * train.accumulate
    lines = [
        f"experiment     {experiment.name} ({experiment.fingerprint})",
        f"base           {experiment.init or 'from scratch'}, window {window}, theta {config.rope_theta:g}",
        f"parameters     {count:,}, {4 * count / 1e9:.2f} GB in float32",
        f"trained        {label([experiment.trainable])}: {trained:,} parameters",
        f"mesh           {experiment.mesh.text}; state {_state_bytes(experiment, trained, frozen)}",
        f"method         {label([rope])}, {label([experiment.attention])} attention, "
        f"{label([experiment.positions])} positions",
        f"               attention factor {table.attention_factor:.6g}, inv_freq {table.inv_freq[0]:.4g} .. "
        f"{table.inv_freq[-1]:.4g}",
        f"batch          {train.batch_size} x {train.accumulate} rows of {train.seq_len} tokens "
        f"({train.seq_len / window:g} windows)",
        f"steps          {train.steps}, {train.steps * rows * train.seq_len:,} tokens, compute in {train.dtype}",
        f"kernel         {_kernel(experiment)}",
        f"evaluations    {len(experiment.evals)} on the result, {len(experiment.zero_shot)} zero-shot methods before",
        f"baselines      {', '.join(label([m]) for m in experiment.baselines) or 'none'} with the same training",
        f"export         {experiment.export.to + ' ' + experiment.export.dtype if experiment.export else 'none'}",
        *(f"missing        {text}" for text in requirements.missing(experiment)),
        "shapes",
    ]
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
    """Float32 parameters, two moments and the gradients (two, if they add up) of what is trained; the rest once."""
    mesh, each = experiment.mesh, 16 if experiment.train.accumulate == 1 else 20
    size = each * trained + jnp.dtype(experiment.train.dtype).itemsize * frozen
    if -1 in (mesh.fsdp, mesh.seq, mesh.tensor):
        return f"{size / 1e9:.1f} GB, shared out over the devices there are"
    return f"{size / 1e9 / (mesh.fsdp * mesh.seq * mesh.tensor):.1f} GB a device, activations come on top"
