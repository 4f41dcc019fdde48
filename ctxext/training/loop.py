"""The training loop: start, resume, stop cleanly. The same command does all three."""

import contextlib
import functools
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.data import Batch, make_batch, prefetch
from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.lm import LM
from ctxext.model.loss import batch_loss
from ctxext.model.trainable import Trainable, checksum, join
from ctxext.optim import Optim, Transformation, apply_updates, global_norm
from ctxext.parallel import distributed
from ctxext.parallel.mesh import Mesh, shardings
from ctxext.plan.flops import seconds_at_peak
from ctxext.rundir import RunDir
from ctxext.tracking import Sink
from ctxext.training.checkpoint import Checkpoints
from ctxext.training.metrics import Metrics, NotFinite
from ctxext.training.monitor import Monitor
from ctxext.training.progress import TrainProgress
from ctxext.training.state import parts, start_state, state_shapes
from ctxext.training.stopping import Agenda, signals

Loss = Callable[[Params, dict[str, jax.Array], Any], tuple[jax.Array, jax.Array]]


def make_step(
    loss: Loss, optimizer: Transformation, shard: Callable[[Any], Any] | None = None
) -> Callable[..., tuple[Params, Any, dict[str, jax.Array]]]:
    """`step(params, opt_state, batch, rotation, frozen={}) -> params, opt_state, metrics`, jitted, its state donated.

    frozen: the parameters that are not trained; the loss gets both as one tree. shard: tree -> shardings, kept for
    parameters, gradients and optimiser state (None: one device).

    batch: arrays [A, B, T]. The A microbatches are summed as nats and as weights, so that A x B rows give the step of
    one batch of A B rows, however the weights are spread.
    """

    def pin(tree: Any) -> Any:
        return tree if shard is None else jax.lax.with_sharding_constraint(tree, shard(tree))

    def step(
        params: Params, opt_state: Any, batch: Any, rotation: Any, frozen: Params | None = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        def joined(params: Params, micro: Any) -> tuple[jax.Array, jax.Array]:
            return loss(join(params, frozen or {}), micro, rotation)

        def add(total: tuple, micro: Any) -> tuple[tuple, None]:
            (nats, weight), gradient = jax.value_and_grad(joined, has_aux=True)(params, micro)
            return jax.tree.map(jnp.add, total, (nats, weight, pin(gradient))), None

        if jax.tree.leaves(batch)[0].shape[0] == 1:  # nothing to add to: no second set of gradients
            first = jax.tree.map(lambda x: x[0], batch)
            (nats, weight), gradient = jax.value_and_grad(joined, has_aux=True)(params, first)
            gradient = pin(gradient)
        else:
            zero = (jnp.float32(0), jnp.float32(0), pin(jax.tree.map(jnp.zeros_like, params)))
            (nats, weight, gradient), _ = jax.lax.scan(add, zero, batch)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = {"loss": nats / weight, "grad_norm": global_norm(gradient), "weight": weight}
        return pin(apply_updates(params, updates)), pin(opt_state), metrics

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


@functools.lru_cache(maxsize=8)  # resuming or repeating within a process compiles once
def _compiled(
    optim: Optim, steps: int, trainable: Trainable, *, mesh: Mesh, **static: Any
) -> Callable:
    def loss(params: Params, micro: Any, rotation: Any) -> tuple[jax.Array, jax.Array]:
        batch = {name: micro[name] for name in Batch._fields}
        return batch_loss(
            trainable.materialize(params, micro), batch, rotation, mesh=mesh, **static
        )

    return make_step(loss, optim.build(steps), lambda tree: shardings(mesh.shard(tree)))


def train(
    experiment: Experiment,
    run: RunDir,
    base: LM,
    *,
    sinks: Sequence[Sink] = (),
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Params:
    """Train `base` by `experiment` in the opened directory `run`, or go on from its newest checkpoint.

    Returns the trained parameters, float32. SIGTERM, Ctrl-C or `stop` end the current step, save, and say how to
    resume; the signals then exit with 0 and 130. Raises ValueError if the loss is not finite (the newest checkpoint
    stays good) or if the data or the base changed since the run began, OSError if a checkpoint cannot be written.
    """
    settings, config = experiment.train, base.config
    if config.attention_dropout:
        raise ValueError(
            f"attention_dropout {config.attention_dropout} is not applied in training; set it to 0 in the "
            "config.json of the base"
        )
    scaling = experiment.rope or base.scaling
    rows = experiment.data.open(base.tokenizer)
    A, B, T, mesh = settings.accumulate, settings.batch_size, settings.seq_len, experiment.mesh
    mesh.check_rows(B, what="train.batch_size")
    if progress and (line := mesh.idle()):
        print(line, file=sys.stderr)
    own = {a * B + row for a in range(A) for row in mesh.own_rows(B)}
    step_fn = compiled_step(experiment, config)
    shapes = state_shapes(experiment, config)
    fresh, frozen = parts(experiment, base, shapes[2])

    @functools.lru_cache(maxsize=256)
    def rotation(seq_len: int) -> Any:
        return scaling.rope(config.rope_base(), seq_len).rotation()

    def batch(step: int) -> Batch:
        return make_batch(
            rows,
            experiment.positions,
            seed=experiment.seed,
            step=step,
            batch_size=A * B,
            seq_len=T,
            own=own,
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(run.lock())
        facts = {
            "data": rows.provenance(),
            "tokenizer": base.tokenizer.sha256,
            "seed": experiment.seed,
        }
        kind, devices = jax.devices()[0].device_kind, mesh.build()
        where = {"device": kind, "mesh": dict(devices.shape), "command": _command()}
        if frozen:
            facts["base"] = checksum(frozen)  # what the checkpoints leave out
        run.record({**facts, **where}, fixed=tuple(facts.keys() - {"seed"}))
        run.write_base(config, scaling, base.tokenizer.files)
        saved = stack.enter_context(
            Checkpoints(run.checkpoints, keep=settings.keep, best=settings.keep_best)
        )
        start, params, opt_state = start_state(experiment, fresh, shapes, saved)
        run.rewind(start)
        agenda = Agenda(settings, stack.enter_context(signals()), stop)
        bar = stack.enter_context(
            TrainProgress(experiment.name, start, settings.steps, enabled=progress)
        )

        def log(row: dict[str, Any]) -> None:
            if "alarm" in row and distributed.is_primary():
                print(f"alarm: {row['alarm']}", file=sys.stderr)
            for sink in sinks:
                sink.log(row)

        def report(row: dict[str, Any]) -> None:
            bar.update(row)
            if "learning_rate" in row:
                log(row)

        measured, done = (
            Metrics(experiment, report, seconds_at_peak(experiment, config, kind, devices.size)),
            start,
        )
        probe = Monitor.of(experiment, base, rows, run)
        try:
            if probe and start == 0 and probe.due(0):
                log(probe.row(0, params, frozen))
            for step, host in stack.enter_context(
                contextlib.closing(prefetch(batch, start, settings.steps))
            ):
                stacked = {
                    name: mesh.rows(x.reshape(A, B, T), dim=1) for name, x in host._asdict().items()
                }
                stacked |= experiment.trainable.dropout_seeds(experiment.seed, step, A)
                seq_len = int(np.max(host.positions)) + 1 if scaling.depends_on_length else T
                agenda.ask()
                params, opt_state, metrics = step_fn(
                    params, opt_state, stacked, rotation(seq_len), frozen
                )
                done = step + 1
                measured.put(done, metrics)
                if probe and probe.due(done):
                    with measured.apart():
                        log(probe.row(done, params, frozen))
                save, stopping = agenda.after(done)
                if save:
                    measured.flush()  # a state is saved only when the step that made it was finite
                    saved.save(done, params, opt_state, loss=measured.mean_loss())
                if stopping:
                    break
        except NotFinite as error:
            saved.wait()
            kept = (
                f"its last good checkpoint is step {saved.latest}"
                if saved.latest
                else "it has no checkpoint yet"
            )
            advice = (
                "lower optim.learning_rate or optim.clip_norm, or look at the data of that step"
            )
            raise NotFinite(f"{run.path}, {error}; {kept}; {advice}") from None
        saved.wait()
        code = agenda.exit_code()
    if done < settings.steps:
        print(
            f"stopped after step {done} of {settings.steps}, saved; resume with: {_command()}",
            file=sys.stderr,
        )
    if code is not None:
        raise SystemExit(code)
    return params


def _command() -> str:
    return shlex.join(
        [
            "ctxext" if sys.argv[0].endswith(("ctxext", "__main__.py")) else sys.argv[0],
            *sys.argv[1:],
        ]
    )
