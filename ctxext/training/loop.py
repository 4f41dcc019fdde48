"""The training loop: start, resume, stop cleanly. The same command does all three."""

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from ctxext.data import Rows, corpora
from ctxext.experiment import Experiment
from ctxext.files import read_jsonl
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.lm import LM
from ctxext.model.quantized import bytes_held, has_quantized
from ctxext.parallel.distributed import broadcast_from_primary
from ctxext.rundir import RunDir, command_line
from ctxext.serialization import to_json
from ctxext.tracking import Sink
from ctxext.training.batches import Batches
from ctxext.training.checkpoint import Checkpoints
from ctxext.training.checksums import parameter_checksum
from ctxext.training.curve import Evaluated, Watch
from ctxext.training.evaluator import Evaluator, from_row
from ctxext.training.metrics import Metrics, NotFinite
from ctxext.training.monitor import Monitor
from ctxext.training.progress import TrainLog
from ctxext.training.state import split_params, start_state, state_shapes, without_teacher
from ctxext.training.step import compiled_step
from ctxext.training.stopping import Request, StoppingPolicy, signals
from ctxext.training.untrained import beyond_rows, beyond_texts


def train(
    experiment: Experiment,
    run: RunDir,
    base: LM,
    *,
    sinks: Sequence[Sink] = (),
    progress: bool = True,
    stop: threading.Event | None = None,
    seconds_at_peak: float | None = None,
) -> Params:
    """Train `base` by `experiment` in the opened directory `run`, or resume its newest checkpoint.

    Returns the trained parameters, float32. SIGTERM, Ctrl-C and `stop` end the current step, save
    and say how to resume; the signals then exit with 0 and 130. seconds_at_peak: the least time of
    a step on these devices (`plan.flops.seconds_at_peak`); without it no MFU is logged. Raises
    ValueError if the loss is not finite (the newest checkpoint stays good) or if the data or the
    base changed since the run began, OSError if a checkpoint cannot be written.
    """
    settings = experiment.train
    _check_dropout(base.config)
    rows = experiment.training_data.open(base.tokenizer)
    if progress:
        _say_what_is_read(experiment, base, rows)
    evaluator = Evaluator.of(experiment, base)
    batches = Batches(experiment, base, rows)
    if progress and (warning := experiment.mesh.idle()):
        print(warning, file=sys.stderr)
    step_fn = compiled_step(experiment, base.config)
    shapes = state_shapes(experiment, base.config)
    base_params, frozen = split_params(experiment, base, shapes)

    with contextlib.ExitStack() as stack:
        stack.enter_context(run.lock())
        _record_start(experiment, run, base, rows, frozen)
        checkpoints = stack.enter_context(
            Checkpoints(run.checkpoints, keep=settings.keep, best=settings.keep_best)
        )
        of_model = without_teacher(frozen)
        done, params, opt_state = start_state(experiment, base_params, shapes, checkpoints)
        run.rewind(done)
        policy = StoppingPolicy(settings, stack.enter_context(signals()), stop)
        log = stack.enter_context(TrainLog(experiment, done, sinks, progress=progress))
        metrics = Metrics(experiment, log.step, seconds_at_peak)
        monitor = Monitor.of(experiment, base, rows, run)
        if monitor and done == 0 and monitor.due(0):
            log.write(monitor.row(0, params, of_model))
        watch = Watch(settings, checkpoints.curve(done) if done else _first_evaluation(run))
        if evaluator and not watch.curve:
            evaluation = evaluator.evaluate(0, params, of_model)
            log.evaluation(evaluation)
            watch.curve.append(evaluation.values)

        stack.enter_context(_naming_the_last_good_checkpoint(run, checkpoints))
        last = settings.steps if watch.over_at is None else done
        host_batches = stack.enter_context(batches.prefetch(done, last))
        for step, host_batch in host_batches:
            batch = batches.on_devices(step, host_batch)
            rotations = batches.rotations(host_batch)
            policy.poll()
            params, opt_state, values = step_fn(params, opt_state, batch, rotations, frozen)
            done = step + 1
            metrics.record(done, values)
            if monitor and monitor.due(done):
                with metrics.exclude():
                    log.write(monitor.row(done, params, of_model))
            requested = Request.NOTHING
            if evaluator and evaluator.due(done):
                with metrics.exclude():
                    evaluation = evaluator.evaluate(done, params, of_model)
                    log.evaluation(evaluation)
                watch.curve.append(evaluation.values)
                requested = watch.request
            save, stopping = policy.after(done, requested)
            if save:
                metrics.flush()  # raises NotFinite: only a state from a finite step is saved
                loss = metrics.mean_loss()
                checkpoints.save(done, params, opt_state, loss=loss, curve=watch.curve)
            if stopping:
                break
        checkpoints.wait()
        exit_code = policy.exit_code()

    if progress and log.evaluating:
        print(log.evaluating.note, file=sys.stderr)
    if done < settings.steps:
        if watch.over_at is None:
            note = f"saved; resume with: {command_line()}"
        else:
            note = f"early: {watch.reason}"
        print(f"stopped after step {done} of {settings.steps}, {note}", file=sys.stderr)
    if exit_code is not None:
        raise SystemExit(exit_code)
    return params


def _first_evaluation(run: RunDir) -> list[Evaluated]:
    """The evaluation before the first step, if a start that has no checkpoint yet made it."""
    rows = broadcast_from_primary(lambda: read_jsonl(run.metrics_file))
    evaluations = [evaluated for row in rows if (evaluated := from_row(row))]
    return evaluations[:1]


def _check_dropout(config: LlamaConfig) -> None:
    if config.attention_dropout:
        raise ValueError(
            f"attention_dropout {config.attention_dropout} is not applied in training; "
            "set it to 0 in the config.json of the base"
        )


def _say_what_is_read(experiment: Experiment, base: LM, rows: Rows) -> None:
    """Print what is trained of the data, and what is not; how much is held out of it."""
    scaling = experiment.effective_scaling(base.scaling)
    if note := beyond_rows(experiment, base.context, scaling):
        print(f"context: {note}", file=sys.stderr)
    if note := beyond_texts(experiment, base.context, rows):
        print(f"data: {note}", file=sys.stderr)
    for note in rows.notes(experiment.positions.text_tokens(experiment.train.seq_len)):
        print(f"data: {note}", file=sys.stderr)
    for corpus in corpora(rows):
        if corpus.held_out is not None:
            print(f"data: {corpus.held_out.note}", file=sys.stderr)


def _record_start(
    experiment: Experiment, run: RunDir, base: LM, rows: Rows, frozen: Params
) -> None:
    """Write the provenance of the run and what its checkpoints are parameters of.

    Raises ValueError if the data, the tokenizer, the frequencies or the frozen parameters are not
    those that an earlier start recorded.
    """
    scaling = experiment.effective_scaling(base.scaling)
    rotary = {"rope_theta": base.config.rope_theta} if base.config.layers.rotates else {}
    fixed: dict[str, Any] = {
        "data": rows.provenance(),
        "tokenizer": base.tokenizer.sha256,
        "bos": base.tokenizer.bos_id if base.tokenizer.adds_bos else None,
        # Two names of one scaling, such as None and `none`, are the same; another base is not.
        "frequencies": {
            "scaling": to_json(scaling),
            **rotary,
            "original_max_position_embeddings": base.config.max_position_embeddings,
        },
    }
    if frozen:
        fixed["base"] = parameter_checksum(frozen)  # which the checkpoints leave out
    environment: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "mesh": dict(experiment.mesh.build().shape),
        "command": command_line(),
    }
    if has_quantized(frozen):
        held, in_bfloat16 = bytes_held(frozen)
        environment["quantized"] = {"bytes": held, "bytes_in_bfloat16": in_bfloat16}
    run.record({**fixed, "seed": experiment.seed, **environment}, fixed=tuple(fixed))
    run.write_base(
        base.config,
        scaling,
        base.tokenizer.files,
        base.generation_config,
        declared=base.context.export_length(scaling, experiment.trained_length),
        base_scaling=base.base_scaling,
        about=base.about,
    )


@contextlib.contextmanager
def _naming_the_last_good_checkpoint(run: RunDir, checkpoints: Checkpoints) -> Iterator[None]:
    """Say in a NotFinite which run it is, what is saved, and what to do."""
    try:
        yield
    except NotFinite as error:
        checkpoints.wait()
        saved = (
            f"its last good checkpoint is step {checkpoints.latest}"
            if checkpoints.latest
            else "it has no checkpoint yet"
        )
        raise NotFinite(
            f"{run.path}, {error}; {saved}; lower optim.learning_rate or optim.clip_norm, "
            "or look at the data of that step"
        ) from None
