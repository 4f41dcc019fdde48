"""The training step: gradients of A microbatches, summed, and one update of the optimiser."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ctxext.experiment import Experiment
from ctxext.losses import BATCH, TEACHER, Loss, Sums
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.loss import Forward
from ctxext.model.setup import ModelSetup
from ctxext.model.trainable import Trainable, join, without_adapters
from ctxext.optim import Optim, Transformation, apply_updates, global_norm
from ctxext.parallel.mesh import shardings

MicrobatchLoss = Callable[[Params, dict[str, jax.Array], Any], tuple[jax.Array, Sums]]
"""(params, microbatch, rotations) -> (the sum to minimise, sums of the microbatch)."""


def make_step(
    loss: MicrobatchLoss, optimizer: Transformation, shard: Callable[[Any], Any] | None = None
) -> Callable[..., tuple[Params, Any, dict[str, jax.Array]]]:
    """Jit `step(params, opt_state, batch, rotations, frozen={}) -> params, opt_state, metrics`.

    batch: arrays [A, B, T]. Losses and sums of the A microbatches are added, so that A x B rows
    give the step of one batch of A B rows, however the weights are spread. frozen: the parameters
    that are not trained; the loss gets both as one tree. shard: tree -> shardings, kept by
    parameters, gradients and optimiser state (None: one device). The state passed in is donated.
    """

    def constrain(tree: Any) -> Any:
        return tree if shard is None else jax.lax.with_sharding_constraint(tree, shard(tree))

    def step(
        params: Params, opt_state: Any, batch: Any, rotations: Any, frozen: Params | None = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        def whole_loss(params: Params, micro: Any) -> tuple[jax.Array, Sums]:
            return loss(join(params, frozen or {}), micro, rotations)

        loss_and_gradient = jax.value_and_grad(whole_loss, has_aux=True)

        def add(total: tuple, micro: Any) -> tuple[tuple, Sums]:
            (value, sums), gradient = loss_and_gradient(params, micro)
            return jax.tree.map(jnp.add, total, (value, constrain(gradient))), sums

        if jax.tree.leaves(batch)[0].shape[0] == 1:
            # There is nothing to add up, so no second set of gradients is held.
            only = jax.tree.map(lambda x: x[0], batch)
            (value, sums), gradient = loss_and_gradient(params, only)
            gradient = constrain(gradient)
        else:
            zeros = constrain(jax.tree.map(jnp.zeros_like, params))
            (value, gradient), sums = jax.lax.scan(add, (jnp.float32(0), zeros), batch)
            sums = jax.tree.map(lambda x: x.sum(0), sums)
        weight = sums["weight"]
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = {"loss": value / weight, "grad_norm": global_norm(gradient), "weight": weight}
        metrics |= {name: x / weight for name, x in sums.items() if name != "weight"}
        return constrain(apply_updates(params, updates)), constrain(opt_state), metrics

    return jax.jit(step, donate_argnums=(0, 1))


def compiled_step(experiment: Experiment, config: LlamaConfig) -> Callable:
    """The jitted training step of an experiment on a base of this shape."""
    settings = experiment.train
    setup = ModelSetup(
        config, experiment.attention, settings.kernel, settings.dtype, experiment.mesh
    )
    return _compiled(
        experiment.optim,
        settings.steps,
        experiment.trainable,
        experiment.loss,
        setup,
        settings.remat,
    )


# Resuming or repeating a run within a process compiles once.
@functools.lru_cache(maxsize=8)
def _compiled(
    optim: Optim, steps: int, trainable: Trainable, loss: Loss, setup: ModelSetup, remat: str
) -> Callable:
    def of_microbatch(params: Params, micro: Any, rotations: Any) -> tuple[jax.Array, Sums]:
        teacher = None
        if loss.has_teacher:
            trained_of_base = params[TEACHER]
            params = {name: branch for name, branch in params.items() if name != TEACHER}
            teacher = join(trained_of_base, without_adapters(params))
        params = trainable.materialize(params, micro)
        forward = Forward(params, rotations[BATCH], setup, remat, teacher)
        batch = {name: x for name, x in micro.items() if name != "dropout"}
        return loss(forward, batch, rotations)

    return make_step(
        of_microbatch, optim.build(steps), lambda tree: shardings(setup.mesh.shard(tree))
    )
