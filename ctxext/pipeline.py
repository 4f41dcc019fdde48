"""Run an experiment from end to end: evaluate zero-shot, train, evaluate, export, prove, report."""

import dataclasses
import re
import shutil
import sys
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
from ctxext.methods import label
from ctxext.model.lm import LM
from ctxext.model.quantized import bytes_held
from ctxext.model.trainable import Full, LoRA
from ctxext.parallel import distributed
from ctxext.plan.flops import seconds_at_peak, step_flops
from ctxext.plan.job import Job
from ctxext.price import Work
from ctxext.prove import changes_since_proof, describe, in_words, proof_file, prove
from ctxext.rope import RopeScaling
from ctxext.rundir import RunDir
from ctxext.tracking import DEFAULT_TRACKERS, Sink, kept_offline, start_sinks
from ctxext.training.evaluation_set import EvaluationSet
from ctxext.training.loop import train


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its directory, its records, and the proof of its export, if it has one."""

    path: Path
    records: list[EvalRecord]
    proof: dict[str, Any] | None

    @property
    def summary(self) -> dict[str, Any]:
        """Tables, proof and paths as data."""
        data = {"run": str(self.path), "proof": self.proof, **report.summary(self.records)}
        if expected := report.expectations_data([self.path]):
            data["expected"] = expected
        return data

    @property
    def text(self) -> str:
        """Tables, proof and paths as text."""
        lines = [*report.verdict(self.records), *report.expectations([self.path]), ""]
        lines += [report.tables(self.records), ""]
        if self.proof is not None:
            lines += [describe(self.proof), "", f"export         {self.path / 'export'}"]
        lines.append(f"records        {self.path / 'records.jsonl'}")
        lines.append(f"run directory  {self.path}")
        if upload := kept_offline(self.path):
            lines.append(f"not uploaded   {upload}")
        lines.append(f"report         {self.path / 'report.html'}")
        return "\n".join(lines)


def open_run(
    experiment: Experiment, run_dir: Path | None = None, file: Path | str | None = None
) -> RunDir:
    """The directory of this experiment, new or to be resumed.

    file: the experiment file, to be copied into a new directory. Raises ValueError for a directory
    of another experiment.
    """
    path = run_dir or Path("runs") / f"{experiment.name}-{experiment.fingerprint}"
    return RunDir(Path(path)).open(experiment, Path(file) if file else None)


def train_only(
    experiment: Experiment,
    run_dir: Path | None = None,
    *,
    file: Path | str | None = None,
    track: Sequence[str] = DEFAULT_TRACKERS,
) -> Path:
    """Train or resume, and return the run directory. Raises ValueError for missing text."""
    requirements.check_context(experiment, training_only=True)
    requirements.check(experiment, training_only=True)
    directory = open_run(experiment, run_dir, file)
    with directory.lock(), start_sinks(experiment, directory, track=track) as sinks:
        base = loading.load_base(experiment, for_training=True)
        _describe_base(experiment, base)
        _train(experiment, directory, base, sinks)
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
    requirements.check_context(experiment)
    requirements.check(experiment)
    directory = open_run(experiment, run_dir, file)
    with directory.lock():
        return _run(experiment, directory, track)


def _run(experiment: Experiment, directory: RunDir, track: Sequence[str]) -> Run:
    # An experiment without evaluations leaves an empty file.
    distributed.broadcast_from_primary(lambda: touch(directory.records_file))
    _check_export(experiment)
    base = loading.load_base(experiment)
    _describe_base(experiment, base)
    for evaluation in experiment.evals:
        evaluation.check(base.tokenizer)
    proof = None
    with start_sinks(experiment, directory, track=track, job="run") as sinks:
        for method in experiment.zero_shot:
            model = base.with_method(method, allow_shorter=experiment.allow_shorter)
            _evaluate(experiment, model, 0, directory, sinks)
        if experiment.train.steps:
            if experiment.trainable != Full():
                # All evaluations of the base are done. Free it before what is frozen is loaded
                # again in the compute dtype.
                del base
                base = loading.load_base(experiment, for_training=True)
            result, steps = _train_and_load(experiment, directory, base, sinks)
        else:
            steps = 0
            scaling = experiment.effective_scaling(base.scaling)
            result = base.with_method(
                scaling, experiment.attention, allow_shorter=experiment.allow_shorter
            )
        model = _evaluate(experiment, result, steps, directory, sinks)
        if experiment.export is not None:
            proof = _export(experiment, result, model, directory)
            facts = {"method": model.label, "equal": proof["equal"]}
            for sink in sinks:
                sink.artifact("export", [directory.export], facts)
        for sink in sinks:
            sink.images(lambda: report.heatmaps(read_records(directory.records_file)))
    if experiment.train.steps:
        for rope in experiment.baselines:
            _run_baseline(experiment, rope, directory, base, track)
    distributed.broadcast_from_primary(lambda: report.write_report([directory.path]) and None)
    return Run(directory.path, read_records(directory.records_file), proof)


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
        experiment.attention,
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
    experiment: Experiment, rope: RopeScaling, run: RunDir, base: LM, track: Sequence[str]
) -> None:
    """Train other frequencies with the same budget, data and seed, and evaluate the result."""
    slug = re.sub(r"[^a-z0-9]+", "-", label([rope]).lower()).strip("-")
    variant = dataclasses.replace(
        experiment,
        name=f"{experiment.name}-{slug}",
        rope=rope,
        zero_shot=(),
        baselines=(),
        expect=(),
        export=None,
    )
    directory = RunDir(run.baselines / slug).open(variant)
    group = experiment.name
    with start_sinks(variant, directory, track=track, group=group, job="baseline") as sinks:
        result, steps = _train_and_load(variant, directory, base, sinks)
        _evaluate(variant, result, steps, run, sinks)


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
    lm = base.with_method(scaling, experiment.attention, allow_shorter=True)
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
    experiment: Experiment, lm: LM, steps: int, run: RunDir, sinks: list[Sink]
) -> EvaluatedModel:
    """Evaluate one variant into the run's records; returns how they describe it."""
    model = evaluated_model(lm, steps=steps, train_seq_len=experiment.train.seq_len)
    records = evaluate(lm, experiment.evals, model=model, sink=run.records_file)
    by_item = {record.item: record for record in records}
    for sink in sinks:
        sink.records(records)
    for evaluation in experiment.evals if sinks else ():
        if isinstance(evaluation, Retrieval) and evaluation.condition == "needle":
            own = [by_item[item] for item in evaluation.items()]
            wrong = wrong_answers(evaluation, lm.tokenizer, own)
            for sink in sinks:
                sink.wrong_answers(steps, wrong)
    return model


def _export(experiment: Experiment, lm: LM, model: EvaluatedModel, run: RunDir) -> dict[str, Any]:
    """Write and prove the export, unless it is already there and equal; returns the proof.

    Raises ValueError if there are files in it that the run did not write and would have to remove.
    """
    assert experiment.export is not None
    suffix = find_format(experiment.export.to).suffix
    out = run.export / f"model{suffix}" if suffix else run.export
    seq_len = lm.context.export_length(lm.scaling, experiment.trained_length)
    if out.exists():
        proof, reason = _prove_existing(out, lm, seq_len)
        if proof is not None:
            return proof
        print(f"{out} is replaced: {reason}", file=sys.stderr)
        distributed.broadcast_from_primary(lambda: _remove_export(out))
    note = merge_note(run)
    print(f"exporting to {out}{': ' if note else ''}{note}", file=sys.stderr)
    export(
        lm,
        out,
        to=experiment.export.to,
        dtype=experiment.export.dtype,
        seq_len=seq_len,
        card=run_card(run, model),
        allow_shorter=experiment.allow_shorter,
    )
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
