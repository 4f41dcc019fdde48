"""The state of a training step: trained parameters, optimiser state, and frozen parameters."""

from typing import Any

import jax
import jax.numpy as jnp

from ctxext.experiment import Experiment
from ctxext.losses import TEACHER
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.lm import LM
from ctxext.model.quantized import cast_floats, hold
from ctxext.model.trainable import split, without_adapters
from ctxext.parallel.mesh import shardings
from ctxext.training.checkpoint import Checkpoints

Shapes = tuple[Params, Any, Params]
"""Trained parameters, optimiser state and frozen parameters as `jax.ShapeDtypeStruct`."""


def state_shapes(experiment: Experiment, config: LlamaConfig) -> Shapes:
    """The shapes of the state, with shardings; allocates nothing.

    The frozen parameters have those of a teacher with them, see `teacher_of`. Raises ValueError if
    the model does not have the parameters that the experiment trains.
    """
    mesh = experiment.mesh
    params, frozen = experiment.trainable.shapes(config)
    frozen |= teacher_of(experiment, params)
    optimizer = experiment.optim.build(experiment.train.steps)
    opt_state = jax.eval_shape(optimizer.init, params)
    return (
        mesh.shard(params),
        mesh.shard(opt_state),
        mesh.shard(cast_floats(frozen, experiment.train.dtype)),
    )


def split_params(experiment: Experiment, base: LM, shapes: Shapes) -> tuple[Params, Params]:
    """(trained parameters as the base has them, frozen ones as `shapes` has them)."""
    trainable = experiment.trainable
    params = trainable.init(base.params, experiment.seed)
    trained, frozen = split(params, trainable.pattern(base.config))
    return trained, hold(frozen | teacher_of(experiment, trained), shapes[2])


def teacher_of(experiment: Experiment, trained: Params) -> Params:
    """{TEACHER: the base's values of what is trained}, or {} for a loss without a teacher.

    trained: before the first step, as arrays or shapes. They are frozen parameters of the step, and
    in no checkpoint: a resumed run takes them from the base again.
    """
    return {TEACHER: without_adapters(trained)} if experiment.loss.has_teacher else {}


def without_teacher(frozen: Params) -> Params:
    """The frozen parameters of the model alone."""
    return {name: branch for name, branch in frozen.items() if name != TEACHER}


def start_state(
    experiment: Experiment, base_params: Params, shapes: Shapes, checkpoints: Checkpoints
) -> tuple[int, Params, Any]:
    """(steps done, trained parameters, optimiser state) to start from.

    They are the newest checkpoint's, or `base_params` in float32 at step 0.
    """
    param_shapes, opt_shapes, _ = shapes
    restored = checkpoints.restore(param_shapes, opt_shapes)
    if restored is not None:
        return restored
    # A copy, because the step gives its arguments' memory away and the base is still needed.
    params = jax.device_put(
        jax.tree.map(lambda x: x.astype(jnp.float32), base_params),
        shardings(param_shapes),
        may_alias=False,
    )
    optimizer = experiment.optim.build(experiment.train.steps)
    return 0, params, jax.jit(optimizer.init, out_shardings=shardings(opt_shapes))(params)
