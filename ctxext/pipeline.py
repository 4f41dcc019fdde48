"""The whole way of an experiment: base, zero-shot evaluation, training, evaluation, export, proof, tables."""

import dataclasses
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ctxext import loading, report, requirements
from ctxext.evals import EvalRecord, evaluated_model
from ctxext.evals.record import read_records
from ctxext.evaluate import evaluate
from ctxext.experiment import Experiment
from ctxext.export import check, export
from ctxext.interop.formats import WriteOptions, find_format
from ctxext.methods import label
from ctxext.model.config import LlamaConfig
from ctxext.model.lm import LM
from ctxext.model.trainable import Full
from ctxext.parallel import distributed
from ctxext.plan.flops import seconds_at_peak
from ctxext.prove import describe, prove
from ctxext.rundir import RunDir
from ctxext.tracking import Sink, kept_offline, start_sinks
from ctxext.training.loop import train

TRACK = ("wandb",)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its directory, its records, and the proof of its export (None without one)."""

    path: Path
    records: list[EvalRecord]
    proof: dict[str, Any] | None

    @property
    def summary(self) -> dict[str, Any]:
        """Tables, proof and paths as data."""
        expected = [outcome.data for outcome in report.expectations([self.path])]
        found = {"run": str(self.path), "proof": self.proof, **report.summary(self.records)}
        return found | ({"expected": expected} if expected else {})

    @property
    def text(self) -> str:
        """Tables, proof and paths to read."""
        expected = [outcome.text for outcome in report.expectations([self.path])]
        lines = [*report.verdict(self.records), *expected, "", report.tables(self.records), ""]
        if self.proof is not None:
            lines += [describe(self.proof), "", f"export         {self.path / 'export'}"]
        lines += [f"records        {self.path / 'records.jsonl'}", f"run directory  {self.path}"]
        if upload := kept_offline(self.path):
            lines.append(f"not uploaded   {upload}")
        return "\n".join([*lines, f"report         {self.path / 'report.html'}"])


def open_run(
    experiment: Experiment, run_dir: Path | None = None, file: Path | str | None = None
) -> RunDir:
    """The directory of this experiment, new or to be resumed. Raises ValueError if it belongs to another one."""
    path = run_dir or Path("runs") / f"{experiment.name}-{experiment.fingerprint}"
    return RunDir(Path(path)).open(experiment, Path(file) if file else None)


def train_only(
    experiment: Experiment,
    run_dir: Path | None = None,
    *,
    file: Path | str | None = None,
    track: Sequence[str] = TRACK,
) -> Path:
    """Train or resume; returns the run directory. Raises ValueError for text that is not there."""
    requirements.check(experiment, training_only=True)
    directory = open_run(experiment, run_dir, file)
    with start_sinks(experiment, directory, track=track) as sinks:
        base = loading.load_base(experiment, for_training=True)
        peak = _seconds_at_peak(experiment, base.config)
        train(experiment, directory, base, sinks=sinks, seconds_at_peak=peak)
        _refer_to_checkpoints(directory, sinks)
    return directory.path


def run(
    experiment: Experiment,
    *,
    run_dir: Path | None = None,
    file: Path | str | None = None,
    track: Sequence[str] = TRACK,
) -> Run:
    """Do everything an experiment says; the same call resumes it. Finished parts are read, not repeated.

    Raises ValueError, before anything else, for text that is not there, of training or of an evaluation, and for
    questions that do not fit their length.
    track: names of `tracking.TRACKERS`, which are told beside metrics.jsonl.
    """
    requirements.check(experiment)
    directory = open_run(experiment, run_dir, file)
    distributed.broadcast_from_primary(
        lambda: directory.records_file.touch()
    )  # empty where no evaluation is asked for
    if experiment.export is not None:  # refused now, not after the training
        config, scaling = loading.base_config(experiment)
        check(
            config,
            experiment.effective_scaling(scaling),
            experiment.attention,
            to=experiment.export.to,
            options=WriteOptions(experiment.export.dtype, experiment.train.seq_len),
        )
    base, proof = loading.load_base(experiment), None
    for evaluation in experiment.evals:
        evaluation.check(base.tokenizer)
    with start_sinks(experiment, directory, track=track, job="run") as sinks:
        for method in experiment.zero_shot:
            _evaluate(experiment, base.with_method(method), 0, directory, sinks)
        if experiment.train.steps:
            if experiment.trainable != Full():
                del base  # evaluated; from here on it is only trained
                base = loading.load_base(experiment, for_training=True)
            trained = _train(experiment, directory, base, sinks)
        else:
            trained = base.with_method(
                experiment.effective_scaling(base.scaling), experiment.attention
            )
        name = _evaluate(experiment, trained, experiment.train.steps, directory, sinks)
        if experiment.export is not None:
            proof = _export(experiment, trained, name, directory)
            for sink in sinks:
                sink.artifact(
                    "export",
                    [directory.export],
                    {"method": name, "equal": not proof["weights_that_differ"]},
                )
        for sink in sinks:
            sink.images(lambda: report.heatmaps(read_records(directory.records_file)))
    for rope in experiment.baselines if experiment.train.steps else ():
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
        place = RunDir(directory.baselines / slug).open(variant)
        with start_sinks(
            variant, place, track=track, group=experiment.name, job="baseline"
        ) as sinks:
            _evaluate(
                variant, _train(variant, place, base, sinks), variant.train.steps, directory, sinks
            )
    distributed.broadcast_from_primary(lambda: report.write_report([directory.path]) and None)
    return Run(directory.path, read_records(directory.records_file), proof)


def _train(experiment: Experiment, place: RunDir, base: LM, sinks: list[Sink]) -> LM:
    settings = experiment.train
    rows = settings.batch_size * settings.accumulate
    print(
        f"training {experiment.name}: {settings.steps} steps x {rows} rows x {settings.seq_len:,} tokens = "
        f"{settings.steps * rows * settings.seq_len:,} tokens",
        file=sys.stderr,
    )
    peak = _seconds_at_peak(experiment, base.config)
    train(experiment, place, base, sinks=sinks, seconds_at_peak=peak)
    _refer_to_checkpoints(place, sinks)
    return loading.load(place.path, mesh=experiment.mesh, trust=True)  # this very process wrote it


def _seconds_at_peak(experiment: Experiment, config: LlamaConfig) -> float | None:
    """Least time of a training step on the devices of this machine, None if their peak is unknown."""
    device_kind = jax.devices()[0].device_kind
    return seconds_at_peak(experiment, config, device_kind, experiment.mesh.build().size)


def _refer_to_checkpoints(run: RunDir, sinks: Sequence[Sink]) -> None:
    """The checkpoints that are left when training is over."""
    kept = sorted(
        (path for path in run.checkpoints.glob("*") if path.name.isdecimal()),
        key=lambda p: int(p.name),
    )
    if kept:
        for sink in sinks:
            sink.artifact("checkpoints", kept, {"steps": [int(path.name) for path in kept]})


def _evaluate(experiment: Experiment, lm: LM, steps: int, run: RunDir, sinks: list[Sink]) -> str:
    """Evaluate one variant into the run's records; returns its label."""
    model = evaluated_model(lm, steps=steps, train_seq_len=experiment.train.seq_len)
    records = evaluate(lm, experiment.evals, model=model, sink=run.records_file)
    for sink in sinks:
        sink.records(records)
    return model.label


def _export(experiment: Experiment, lm: LM, name: str, run: RunDir) -> dict[str, Any]:
    assert experiment.export is not None
    suffix = find_format(experiment.export.to).suffix
    out = run.export / f"model{suffix}" if suffix else run.export
    if out.exists():
        proof = prove(out, against=lm)
        if not proof["weights_that_differ"]:
            return proof
        # The run has been trained further since.
        distributed.broadcast_from_primary(lambda: shutil.rmtree(run.export))
    print(f"exporting to {out}", file=sys.stderr)
    card = {
        "method": name,
        "experiment": experiment.name,
        "summary": report.tables(read_records(run.records_file)),
    }
    export(
        lm,
        out,
        to=experiment.export.to,
        dtype=experiment.export.dtype,
        seq_len=experiment.train.seq_len,
        card=card,
    )
    return prove(out, against=lm)
