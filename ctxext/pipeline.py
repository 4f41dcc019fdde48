"""Run an experiment from end to end: evaluate zero-shot, train, evaluate, export, prove, report."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ctxext import loading, report, requirements
from ctxext.evals import EvalRecord, Retrieval, evaluated_model
from ctxext.evals.record import EvaluatedModel, read_records
from ctxext.evals.work import calls_of
from ctxext.evals.wrong_answers import wrong_answers
from ctxext.evaluate import evaluate
from ctxext.experiment import Experiment
from ctxext.export import check, check_length, export, merge_note, run_card
from ctxext.files import touch
from ctxext.interop.formats import find_format
from ctxext.model.lm import LM
from ctxext.model.quantized import bytes_held
from ctxext.model.trainable import Full, LoRA
from ctxext.parallel import distributed
from ctxext.plan.flops import seconds_at_peak, step_flops
from ctxext.plan.job import Job
from ctxext.price import Work
from ctxext.prove import changes_since_proof, describe, in_words, proof_file, prove
from ctxext.rope import RopeScaling
from ctxext.rundir import RunDir, default_run_dir
from ctxext.stages import budget
from ctxext.stages.budget import Scaled
from ctxext.stages.clock import StageClock
from ctxext.stages.costs import Costs
from ctxext.stages.estimate import Plan
from ctxext.stages.own_text import with_own_text
from ctxext.stages.speeds import Speeds
from ctxext.tracking import DEFAULT_TRACKERS, Sink, kept_offline, start_sinks
from ctxext.training.evaluation_set import EvaluationSet
from ctxext.training.loop import train


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its directory, its records, and the proof of its export, if it has one."""

    path: Path
    records: list[EvalRecord]
    proof: dict[str, Any] | None
    stages: list[str] = dataclasses.field(default_factory=list)
    """Lines on how long each stage was estimated to take, and took."""
    costs: Costs | None = None
    """The speed of the training, and the most memory that was used."""

    @property
    def summary(self) -> dict[str, Any]:
        """Tables, proof and paths as data."""
        data = {"run": str(self.path), "proof": self.proof, **report.summary(self.records)}
        if expected := report.expectations_data([self.path]):
            data["expected"] = expected
        if left_out := report.left_out(self.path):
            data["left_out"] = left_out
        if self.costs is not None:
            data["costs"] = self.costs.data()
        return data

    @property
    def text(self) -> str:
        """Tables, proof and paths as text."""
        lines = [*report.verdict(self.records), *report.expectations([self.path])]
        lines += [*([left_out] if (left_out := report.left_out(self.path)) else []), ""]
        lines += [report.tables(self.records), ""]
        if self.proof is not None:
            lines += [describe(self.proof), "", f"export         {self.path / 'export'}"]
        lines.append(f"records        {self.path / 'records.jsonl'}")
        lines.append(f"run directory  {self.path}")
        if upload := kept_offline(self.path):
            lines.append(f"not uploaded   {upload}")
        lines.append(f"report         {self.path / 'report.html'}")
        lines += [] if self.costs is None else self.costs.lines()
        if self.stages:
            lines += ["", *self.stages]
        return "\n".join(lines)


def open_run(
    experiment: Experiment, run_dir: Path | None = None, file: Path | str | None = None
) -> RunDir:
    """The directory of this experiment, new or to be resumed.

    file: the experiment file, to be copied into a new directory. Raises ValueError for a directory
    of another experiment.
    """
    path = run_dir or default_run_dir(experiment)
    return RunDir(Path(path)).open(experiment, Path(file) if file else None)


def train_only(
    experiment: Experiment,
    run_dir: Path | None = None,
    *,
    file: Path | str | None = None,
    track: Sequence[str] = DEFAULT_TRACKERS,
) -> Path:
    """Train or resume, and return the run directory. Raises ValueError for missing text."""
    num_devices = len(jax.devices())
    requirements.check_context(experiment, training_only=True, num_devices=num_devices)
    requirements.check(experiment, training_only=True)
    _say_doubts(experiment)
    directory = open_run(experiment, run_dir, file)
    with directory.lock(), start_sinks(experiment, directory, track=track) as sinks:
        started = time.monotonic()
        base = loading.load_base(experiment, for_training=True)
        _describe_base(experiment, base)
        plan = Plan.of(experiment, base, (), directory, training_only=True)
        clock = _start_clock(plan, directory, started)
        with clock.stage("train"):
            _train(experiment, directory, base, sinks)
    for line in [*clock.summary(), *Costs.of(directory).lines()]:
        print(line, file=sys.stderr)
    return directory.path


def run(
    experiment: Experiment,
    *,
    run_dir: Path | None = None,
    file: Path | str | None = None,
    track: Sequence[str] = DEFAULT_TRACKERS,
) -> Run:
    """Run an experiment from end to end; the same call resumes it without repeating finished parts.

    track: names of `tracking.TRACKERS`, which are logged to in addition to metrics.jsonl.
    Raises ValueError before anything starts for missing text, for an export that is impossible, for
    questions that do not fit their length, and if another process runs in the directory.
    """
    # The context first, because checking the text reads all of it.
    requirements.check_context(experiment, num_devices=len(jax.devices()))
    requirements.check(experiment)
    _say_doubts(experiment)
    directory = open_run(experiment, run_dir, file)
    with directory.lock():
        return _run(experiment, directory, track)


def _say_doubts(experiment: Experiment) -> None:
    for sentence in requirements.doubts(experiment):
        print(f"training: {sentence}", file=sys.stderr)


def _run(experiment: Experiment, directory: RunDir, track: Sequence[str]) -> Run:
    # An experiment without evaluations leaves an empty file.
    distributed.broadcast_from_primary(lambda: touch(directory.records_file))
    _check_export(experiment)
    started = time.monotonic()
    base = loading.load_base(experiment)
    _describe_base(experiment, base)
    asked, notes = with_own_text(experiment, base.tokenizer)
    for note in notes:
        print(f"evaluations: {note}", file=sys.stderr)
    for evaluation in asked.evals:
        evaluation.check(base.tokenizer)
    scaled, speeds = _scaled(asked, base, directory)
    plan = Plan.of(experiment, base, scaled.evals, directory)
    clock = _start_clock(plan, directory, started, speeds)
    proof = None
    with start_sinks(experiment, directory, track=track, job="run") as sinks:
        for method in experiment.zero_shot:
            model = base.with_method(method, allow_shorter=experiment.allow_shorter)
            with clock.stage("evaluate"):
                _evaluate(experiment, model, scaled, 0, directory, sinks)
        if experiment.train.steps:
            if experiment.trainable != Full():
                # All evaluations of the base are done. Free it before what is frozen is loaded
                # again in the compute dtype.
                del base
                base = loading.load_base(experiment, for_training=True)
            with clock.stage("train"):
                result, steps = _train_and_load(experiment, directory, base, sinks)
        else:
            steps = 0
            scaling = experiment.effective_scaling(base.scaling)
            result = base.with_method(
                scaling, experiment.evaluated_attention, allow_shorter=experiment.allow_shorter
            )
        with clock.stage("evaluate"):
            model = _evaluate(experiment, result, scaled, steps, directory, sinks)
        budget.record(directory, scaled)
        if experiment.export is not None:
            proof = _export(experiment, result, model, directory, clock)
            facts = {"method": model.label, "equal": proof["equal"]}
            for sink in sinks:
                sink.artifact("export", [directory.export], facts)
        for sink in sinks:
            sink.images(lambda: report.heatmaps(read_records(directory.records_file)))
    if experiment.train.steps:
        for rope in experiment.baselines:
            _run_baseline(experiment, rope, scaled, directory, base, track, clock)
    with clock.stage("report"):
        distributed.broadcast_from_primary(lambda: report.write_report([directory.path]) and None)
    records = read_records(directory.records_file)
    return Run(directory.path, records, proof, clock.summary(), Costs.of(directory))


def _scaled(experiment: Experiment, base: LM, directory: RunDir) -> tuple[Scaled, Speeds | None]:
    """The evaluations within the budget of the run, which an earlier start may have fixed.

    And the speeds of this device, if that took measuring them. Raises ValueError for minutes
    that are too few.
    """
    asked, evals = experiment.budget, experiment.evals
    if not evals or not budget.is_minutes(asked):
        return budget.scale(asked, evals), None
    speeds = None
    texts = budget.known_texts(directory, asked)
    if texts is None:
        # All that the recipe declares, whatever is there already.
        plan = Plan.of(experiment, base, evals)
        speeds = plan.measure()
        texts = distributed.broadcast_from_primary(lambda: budget.texts_within(asked, plan, speeds))
    return budget.scale(asked, evals, texts=texts), speeds


def _start_clock(
    plan: Plan, directory: RunDir, started: float, speeds: Speeds | None = None
) -> StageClock:
    """Say what the run does and how long that takes, before it starts.

    speeds: of this device, if they were measured for that.
    """
    estimate = plan.estimate(speeds) if speeds is not None else plan.estimate(*plan.speeds())
    print("\n".join(estimate.lines()), file=sys.stderr, flush=True)
    clock = StageClock(estimate, directory)
    clock.passed("prepare", time.monotonic() - started)
    return clock


def _check_export(experiment: Experiment) -> None:
    """Raises ValueError now for an export that would be refused after the training."""
    if experiment.export is None:
        return
    config, base_scaling = loading.base_config(experiment)
    scaling = experiment.effective_scaling(base_scaling)
    context = loading.base_context(experiment)
    window = context.export_length(scaling, experiment.trained_length)
    check(
        config,
        scaling,
        experiment.evaluated_attention,
        to=experiment.export.to,
        window=window,
        dtype=experiment.export.dtype,
    )
    if not experiment.allow_shorter:
        check_length(config, scaling, context, window)


def _describe_base(experiment: Experiment, base: LM) -> None:
    """Print how texts begin, how the base is held, what a factor counts from, what it declares."""
    print(base.tokenizer.bos_note, file=sys.stderr)
    if isinstance(experiment.trainable, LoRA) and base.is_quantized:
        held, in_bfloat16 = bytes_held(base.params)
        print(
            f"base: the kernels of its layers are held in {experiment.trainable.quantize}, "
            f"{held / 1e9:.3g} GB instead of {in_bfloat16 / 1e9:.3g} in bfloat16, in training and "
            "in evaluations",
            file=sys.stderr,
        )
    scaling = experiment.effective_scaling(base.scaling)
    if not base.context.is_plain(scaling):
        print(f"context: {base.context.text(scaling)}", file=sys.stderr)


def _run_baseline(
    experiment: Experiment,
    rope: RopeScaling,
    scaled: Scaled,
    run: RunDir,
    base: LM,
    track: Sequence[str],
    clock: StageClock,
) -> None:
    """Train other frequencies with the same budget, data and seed, and evaluate the result."""
    variant = experiment.as_baseline(rope)
    directory = RunDir(run.baselines / experiment.baseline_slug(rope)).open(variant)
    group = experiment.name
    with start_sinks(variant, directory, track=track, group=group, job="baseline") as sinks:
        with clock.stage("train"):
            result, steps = _train_and_load(variant, directory, base, sinks)
        with clock.stage("evaluate"):
            _evaluate(variant, result, scaled, steps, run, sinks)


def _train_and_load(
    experiment: Experiment, run: RunDir, base: LM, sinks: list[Sink]
) -> tuple[LM, int]:
    """The checkpoint that `train.result` chooses, and its steps."""
    settings = experiment.train
    rows = settings.batch_size * settings.accumulate
    tokens = settings.steps * rows * settings.seq_len
    print(
        f"training {experiment.name}: {settings.steps} steps x {rows} rows x {settings.seq_len:,} "
        f"tokens = {tokens:,} tokens",
        file=sys.stderr,
    )
    _train(experiment, run, base, sinks)
    steps = loading.checkpoint_step(run.path, settings.result)
    # This process wrote it.
    lm = loading.load(run.path, checkpoint=steps, mesh=experiment.mesh, trust=True)
    return lm, steps


def _train(experiment: Experiment, run: RunDir, base: LM, sinks: Sequence[Sink]) -> None:
    """Train or resume, and refer the trackers to the checkpoints that are left at the end."""
    devices = experiment.mesh.build().size
    peak = seconds_at_peak(experiment, base.config, jax.devices()[0].device_kind, devices)
    if experiment.train.eval_every:
        print("\n".join(_price_of_evaluations(experiment, base, devices)), file=sys.stderr)
    train(experiment, run, base, sinks=sinks, seconds_at_peak=peak)
    checkpoints = [path for path in run.checkpoints.glob("*") if path.name.isdecimal()]
    if checkpoints:
        checkpoints.sort(key=lambda path: int(path.name))
        steps = [int(path.name) for path in checkpoints]
        for sink in sinks:
            sink.artifact("checkpoints", checkpoints, {"steps": steps})


def _price_of_evaluations(experiment: Experiment, base: LM, devices: int) -> list[str]:
    """What is measured during training, and the share of the training's operations that it takes.

    Raises ValueError as `EvaluationSet.of`.
    """
    settings = experiment.train
    chosen = EvaluationSet.of(experiment, base.context, base.tokenizer)
    times = 1 + len(
        {*range(settings.eval_every, settings.steps, settings.eval_every), settings.steps}
    )
    scaling = experiment.effective_scaling(base.scaling)
    lm = base.with_method(scaling, experiment.evaluated_attention, allow_shorter=True)
    described = evaluated_model(lm)
    works = [Work(e.full_title, lm, calls_of(e, lm, e.items(), described)) for e in chosen.evals]
    evaluating = times * sum(work.operations.total for work in works)
    training = settings.steps * step_flops(Job.of(experiment, base.config, devices)).total
    share = evaluating / (evaluating + training)
    return [
        chosen.sentence(times),
        *chosen.notes,
        f"evaluations during training take about {100 * share:.2g} % of the run's operations",
    ]


def _evaluate(
    experiment: Experiment,
    lm: LM,
    scaled: Scaled,
    steps: int,
    run: RunDir,
    sinks: list[Sink],
) -> EvaluatedModel:
    """Evaluate one variant into the run's records; returns how they describe it."""
    model = evaluated_model(lm, steps=steps, train_seq_len=experiment.train.seq_len)
    records = evaluate(lm, scaled.evals, model=model, sink=run.records_file)
    by_item = {record.item: record for record in records}
    for sink in sinks:
        sink.records(records)
    for evaluation in scaled.evals if sinks else ():
        if isinstance(evaluation, Retrieval) and evaluation.condition == "needle":
            own = [by_item[item] for item in evaluation.items()]
            wrong = wrong_answers(evaluation, lm.tokenizer, own)
            for sink in sinks:
                sink.wrong_answers(steps, wrong)
    return model


def _export(
    experiment: Experiment, lm: LM, model: EvaluatedModel, run: RunDir, clock: StageClock
) -> dict[str, Any]:
    """Write and prove the export, unless it is already there and equal; returns the proof.

    Raises ValueError if there are files in it that the run did not write and would have to remove.
    """
    assert experiment.export is not None
    suffix = find_format(experiment.export.to).suffix
    out = run.export / f"model{suffix}" if suffix else run.export
    seq_len = lm.context.export_length(lm.scaling, experiment.trained_length)
    if out.exists():
        with clock.stage("prove"):
            proof, reason = _prove_existing(out, lm, seq_len)
        if proof is not None:
            return proof
        clock.again("prove")
        print(f"{out} is replaced: {reason}", file=sys.stderr)
        distributed.broadcast_from_primary(lambda: _remove_export(out))
    note = merge_note(run)
    print(f"exporting to {out}{': ' if note else ''}{note}", file=sys.stderr)
    with clock.stage("export"):
        export(
            lm,
            out,
            to=experiment.export.to,
            dtype=experiment.export.dtype,
            seq_len=seq_len,
            card=run_card(run, model),
            allow_shorter=experiment.allow_shorter,
        )
    with clock.stage("prove"):
        return prove(out, against=lm, seq_len=seq_len)


def _remove_export(out: Path) -> None:
    """Remove a directory, or a file and the proof next to it."""
    if out.is_dir():
        shutil.rmtree(out)
        return
    proof_file(out).unlink(missing_ok=True)
    out.unlink()


def _prove_existing(out: Path, lm: LM, seq_len: int) -> tuple[dict[str, Any] | None, str]:
    """The proof of an export that is there; None, and the reason, for one to be written again.

    Raises ValueError for files that the run did not write.
    """
    try:
        changes = changes_since_proof(out)
    except ValueError as error:
        return None, str(error)
    added = [name for name, change in changes.items() if change == "new"]
    if added:
        raise ValueError(
            f"{out} holds {', '.join(added)}, which this run did not write; move that to another "
            "directory, so that nothing of yours is lost or taken for the export"
        )
    if changes:
        return None, f"changed since it was proven: {in_words(changes)}"
    try:
        proof = prove(out, against=lm, seq_len=seq_len)
    except ValueError as error:
        return None, str(error)
    if proof["equal"]:
        return proof, ""
    # As after more training.
    return None, "it is not the model that the run has now"
