"""What a training step holds: trained parameters, their optimiser state, and the parameters that stay as they are."""

from typing import Any

import jax
import jax.numpy as jnp

from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.lm import LM
from ctxext.model.trainable import split
from ctxext.parallel.mesh import shardings
from ctxext.training.checkpoint import Checkpoints

Shapes = tuple[Params, Any, Params]


def state_shapes(experiment: Experiment, config: LlamaConfig) -> Shapes:
    """(trained parameters, optimiser state, frozen parameters) as shapes with shardings; allocates nothing.

    Raises ValueError if the model does not have what the experiment trains.
    """
    mesh, (params, frozen) = experiment.mesh, experiment.trainable.shapes(config)
    opt_state = jax.eval_shape(experiment.optim.build(experiment.train.steps).init, params)
    return (
        mesh.shard(params),
        mesh.shard(opt_state),
        mesh.shard(frozen, jnp.dtype(experiment.train.dtype)),
    )


def parts(experiment: Experiment, base: LM, frozen: Params) -> tuple[Params, Params]:
    """(what is trained, as the base has it; the rest, in the compute dtype and where the shapes `frozen` say)."""
    trainable, kind = experiment.trainable, jnp.dtype(experiment.train.dtype)
    mine, rest = split(trainable.init(base.params, experiment.seed), trainable.pattern(base.config))
    return mine, jax.device_put(jax.tree.map(lambda x: x.astype(kind), rest), shardings(frozen))


def start_state(
    experiment: Experiment, fresh: Params, shapes: Shapes, saved: Checkpoints
) -> tuple[int, Params, Any]:
    """(steps done, trained parameters, optimiser state): the newest checkpoint's, or `fresh` in float32 at step 0."""
    param_shapes, opt_shapes, _ = shapes
    if restored := saved.restore(param_shapes, opt_shapes):
        return restored
    # A copy, because the step gives its arguments' memory away and the base is still needed.
    params = jax.device_put(
        jax.tree.map(lambda x: x.astype(jnp.float32), fresh),
        shardings(param_shapes),
        may_alias=False,
    )
    optimizer = experiment.optim.build(experiment.train.steps)
    return 0, params, jax.jit(optimizer.init, out_shardings=shardings(opt_shapes))(params)
