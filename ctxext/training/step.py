"""The training step: gradients of A microbatches, summed, and one update of the optimiser."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ctxext.data import Batch
from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.loss import batch_loss
from ctxext.model.trainable import Trainable, join
from ctxext.optim import Optim, Transformation, apply_updates, global_norm
from ctxext.parallel.mesh import Mesh, shardings

Loss = Callable[[Params, dict[str, jax.Array], Any], tuple[jax.Array, jax.Array]]
"""(params, microbatch, rotation) -> (sum of weighted losses in nats, sum of weights)."""


def make_step(
    loss: Loss, optimizer: Transformation, shard: Callable[[Any], Any] | None = None
) -> Callable[..., tuple[Params, Any, dict[str, jax.Array]]]:
    """Jit `step(params, opt_state, batch, rotation, frozen={}) -> params, opt_state, metrics`.

    batch: arrays [A, B, T]. Losses and weights of the A microbatches are summed, so that A x B rows
    give the step of one batch of A B rows, however the weights are spread. frozen: the parameters
    that are not trained; the loss gets both as one tree. shard: tree -> shardings, kept by
    parameters, gradients and optimiser state (None: one device). The state passed in is donated.
    """

    def constrain(tree: Any) -> Any:
        return tree if shard is None else jax.lax.with_sharding_constraint(tree, shard(tree))

    def step(
        params: Params, opt_state: Any, batch: Any, rotation: Any, frozen: Params | None = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        def whole_loss(params: Params, micro: Any) -> tuple[jax.Array, jax.Array]:
            return loss(join(params, frozen or {}), micro, rotation)

        loss_and_gradient = jax.value_and_grad(whole_loss, has_aux=True)

        def add(total: tuple, micro: Any) -> tuple[tuple, None]:
            (nll, weight), gradient = loss_and_gradient(params, micro)
            return jax.tree.map(jnp.add, total, (nll, weight, constrain(gradient))), None

        if jax.tree.leaves(batch)[0].shape[0] == 1:
            # There is nothing to add up, so no second set of gradients is held.
            only = jax.tree.map(lambda x: x[0], batch)
            (nll, weight), gradient = loss_and_gradient(params, only)
            gradient = constrain(gradient)
        else:
            zeros = constrain(jax.tree.map(jnp.zeros_like, params))
            total = (jnp.float32(0), jnp.float32(0), zeros)
            (nll, weight, gradient), _ = jax.lax.scan(add, total, batch)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = {"loss": nll / weight, "grad_norm": global_norm(gradient), "weight": weight}
        return constrain(apply_updates(params, updates)), constrain(opt_state), metrics

    return jax.jit(step, donate_argnums=(0, 1))


def compiled_step(experiment: Experiment, config: LlamaConfig) -> Callable:
    """The jitted training step of an experiment on a base of this shape."""
    settings = experiment.train
    return _compiled(
        experiment.optim,
        settings.steps,
        experiment.trainable,
        config=config,
        attention=experiment.attention,
        kernel=settings.kernel,
        dtype=settings.dtype,
        remat=settings.remat,
        mesh=experiment.mesh,
    )


# Resuming or repeating a run within a process compiles once.
@functools.lru_cache(maxsize=8)
def _compiled(
    optim: Optim, steps: int, trainable: Trainable, *, mesh: Mesh, **static: Any
) -> Callable:
    def loss(params: Params, micro: Any, rotation: Any) -> tuple[jax.Array, jax.Array]:
        params = trainable.materialize(params, micro)
        batch = {name: micro[name] for name in Batch._fields}
        return batch_loss(params, batch, rotation, mesh=mesh, **static)

    return make_step(loss, optim.build(steps), lambda tree: shardings(mesh.shard(tree)))
