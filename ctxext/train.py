"""The training loop: start, resume, stop cleanly. The same command does all three."""

import contextlib
import functools
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext.checkpoint import Checkpoints
from ctxext.data import Batch, make_batch, prefetch
from ctxext.experiment import Experiment
from ctxext.lm import LM
from ctxext.loss import batch_loss
from ctxext.model import Params
from ctxext.optim import Optim, Transformation, apply_updates, global_norm
from ctxext.progress import TrainProgress
from ctxext.rundir import RunDir
from ctxext.tracking import Sink


class NotFinite(ValueError):
    """The loss or its gradient became NaN or infinite."""


def make_step(loss: Callable[[Params, dict, Any], tuple[jax.Array, jax.Array]], optimizer: Transformation) -> Callable:
    """`step(params, opt_state, batch, rotation) -> params, opt_state, metrics`, jitted, its state donated.

    batch: arrays [A, B, T]. The A microbatches are summed as nats and as weights, so that A x B rows give the step of
    one batch of A B rows, however the weights are spread.
    """

    def step(params: Params, opt_state: Any, batch: dict, rotation: Any) -> tuple[Params, Any, dict]:
        def add(total: tuple, micro: dict) -> tuple[tuple, None]:
            (nats, weight), gradient = jax.value_and_grad(loss, has_aux=True)(params, micro, rotation)
            return jax.tree.map(jnp.add, total, (nats, weight, gradient)), None

        zero = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
        (nats, weight, gradient), _ = jax.lax.scan(add, zero, batch)
        gradient = jax.tree.map(lambda g: g / weight, gradient)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = {"loss": nats / weight, "grad_norm": global_norm(gradient), "weight": weight}
        return apply_updates(params, updates), opt_state, metrics

    return jax.jit(step, donate_argnums=(0, 1))


@functools.lru_cache(maxsize=8)  # resuming or repeating within a process compiles once
def _compiled(optim: Optim, steps: int, **static: Any) -> Callable:
    return make_step(functools.partial(batch_loss, **static), optim.build(steps))


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

    Returns the parameters, float32. SIGTERM, Ctrl-C or `stop` end the current step, save, and say how to resume; the
    signals then exit with 0 and 130. Raises ValueError if the loss is not finite (the newest checkpoint stays good) or
    if the data changed since the run began.
    """
    settings = experiment.train
    scaling = experiment.rope or base.scaling
    rows = experiment.data.open(base.tokenizer)
    optimizer = experiment.optim.build(settings.steps)
    learning_rate = experiment.optim.learning_rates(settings.steps)
    config, T, A = base.config, settings.seq_len, settings.accumulate
    step_fn = _compiled(
        experiment.optim, settings.steps, config=config, attention=experiment.attention, kernel=settings.kernel,
        dtype=settings.dtype, remat=settings.remat,
    )  # fmt: skip

    @functools.lru_cache(maxsize=256)
    def rotation(seq_len: int) -> Any:
        return scaling.rope(config.rope_base(), seq_len).rotation()

    def batch(step: int) -> Batch:
        return make_batch(
            rows, experiment.positions, seed=experiment.seed, step=step, batch_size=A * settings.batch_size, seq_len=T
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(run.lock())
        device = jax.devices()[0].device_kind
        facts = {"data": rows.provenance(), "tokenizer": base.tokenizer.sha256}
        run.record({**facts, "device": device, "seed": experiment.seed}, fixed=("data", "tokenizer"))
        run.write_base(config, scaling, base.tokenizer.files)
        saved = stack.enter_context(Checkpoints(run.checkpoints))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), base.params)
        restored = saved.restore(shapes, jax.eval_shape(optimizer.init, shapes))
        if restored:
            start, params, opt_state = restored
        else:  # a copy, because the step gives its arguments' memory away and the base is still needed
            start, params = 0, jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), base.params)
            opt_state = jax.jit(optimizer.init)(params)
        run.rewind(start)
        asked = stack.enter_context(_signals())
        bar = stack.enter_context(TrainProgress(experiment.name, start, settings.steps, enabled=progress))
        clock, counted = time.perf_counter(), start
        waiting: tuple[int, dict] | None = None  # metrics are read one step late, so that the device never waits

        def read() -> None:
            nonlocal waiting, clock, counted
            if waiting is None:
                return
            step, values = waiting[0], {name: float(value) for name, value in waiting[1].items()}
            waiting = None
            if not all(map(math.isfinite, values.values())):
                where = (
                    f"its last good checkpoint is step {saved.latest}" if saved.latest else "it has no checkpoint yet"
                )
                raise NotFinite(
                    f"step {step} of {run.path}: loss {values['loss']}, gradient norm {values['grad_norm']}; {where};"
                    " lower optim.learning_rate or optim.clip_norm, or look at the data of that step"
                )
            bar.update(step, values["loss"])
            if step % settings.log_every == 0 or step in (1, settings.steps):
                now = time.perf_counter()
                speed = (step - counted) * A * settings.batch_size * T / (now - clock)
                clock, counted = now, step
                row = {
                    "step": step,
                    **values,
                    "learning_rate": float(learning_rate(step - 1)),
                    "tokens_per_second": speed,
                }
                for sink in sinks:
                    sink.log(row)
                bar.log(row)

        done = start
        for step, host in stack.enter_context(contextlib.closing(prefetch(batch, start, settings.steps))):
            stacked = {k: v.reshape(A, settings.batch_size, T) for k, v in host._asdict().items()}
            seq_len = int(np.max(host.positions)) + 1 if scaling.depends_on_length else T
            params, opt_state, metrics = step_fn(params, opt_state, stacked, rotation(seq_len))
            read()
            done, waiting = step + 1, (step + 1, metrics)
            stopping = bool(asked) or (stop is not None and stop.is_set())
            if stopping or done % settings.checkpoint_every == 0 or done == settings.steps:
                read()  # a state is saved only when the step that made it was finite
                saved.save(done, params, opt_state)
            if stopping and done < settings.steps:
                break
        saved.wait()
    if done < settings.steps:
        print(f"stopped after step {done} of {settings.steps}, saved; resume with: {_command()}", file=sys.stderr)
    if asked:
        raise SystemExit(0 if asked[0] == signal.SIGTERM else 130)
    return params


def _command() -> str:
    return shlex.join(["ctxext" if sys.argv[0].endswith(("ctxext", "__main__.py")) else sys.argv[0], *sys.argv[1:]])


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The first SIGTERM or Ctrl-C is noted in the list, a second one acts as usual."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])
        print("stopping after this step; once more stops at once", file=sys.stderr)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
