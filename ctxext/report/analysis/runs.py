"""The contents of run directories, read for a page. No code of a run is executed."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxext.evals.record import (
    AnswerRecord,
    EvalRecord,
    LossRecord,
    RecoveryRecord,
    read_records,
)
from ctxext.files import read_json
from ctxext.methods import label
from ctxext.model.context import meant_scaling
from ctxext.report.analysis.directories import is_unfinished
from ctxext.report.analysis.pooling import pool_seeds
from ctxext.report.analysis.records import group, latest
from ctxext.report.analysis.run_files import (
    BUDGET,
    CONTEXT,
    PROOF,
    PROVENANCE,
    check_proof,
    measured,
    read_metrics,
    read_object,
)
from ctxext.report.analysis.wavelengths import Spectrum, spectrum
from ctxext.rope import RopeScaling, Unscaled
from ctxext.rundir import SETTINGS, RunDir
from ctxext.serialization import from_json


@dataclass
class RunData:
    """One directory: what it lacks is empty, what could not be read has a line in `notes`."""

    path: Path
    name: str
    records: list[EvalRecord]
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    """What was asked of the evaluations that the experiment declares."""
    losses: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Training metrics by the name of what was trained: the run and its baselines."""
    evaluations: dict[str, list[tuple[int, dict[str, float]]]] = field(default_factory=dict)
    """Values of measures after steps, evaluated during training, by the same names."""
    spectra: list[Spectrum] = field(default_factory=list)
    method: str = ""
    """The method that the experiment trains, as records call it; "" if it is unknown here."""
    notes: list[str] = field(default_factory=list)


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """The directories, in order; of several, each model names its run as the checkpoint.

    Runs that differ only in their training seed are one arm, see `pooling`.

    Raises ValueError for a directory without records.jsonl.
    """
    runs = [read_run(Path(path)) for path in paths]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.path)
    if len(runs) > 1:
        for run in runs:
            run.records = [_with_checkpoint(record, run.name) for record in run.records]
        pool_seeds(runs)
        _drop_repeated(runs)
    return runs


def choose_runs(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """(the directories that a report is about, a line on each kind of the other paths).

    Those are no runs, as of `runs/sweep/*`, which names logs and pages too, or runs that have not
    ended their evaluations. A path that does not exist is kept, and so are all where none is a run:
    reading them says what is wrong. Where no run has ended them, all are kept, which is said.
    """
    runs = [path for path in paths if not path.exists() or RunDir(path).records_file.is_file()]
    if not any(path.exists() for path in runs):
        return list(paths), []
    others = [path for path in paths if path not in runs]
    unmeasured = [path for path in others if RunDir(path).config_file.is_file()]
    kinds = {
        "no run": [path for path in others if path not in unmeasured],
        "a run without records yet": unmeasured,
    }
    notes = [
        f"left out, {kind if len(of_kind) == 1 else f'each {kind}'}: {', '.join(map(str, of_kind))}"
        for kind, of_kind in kinds.items()
        if of_kind
    ]
    unfinished = [path for path in runs if path.exists() and is_unfinished(path)]
    if unfinished:
        names = ", ".join(map(str, unfinished))
        finished = [path for path in runs if path not in unfinished]
        if finished:
            return finished, [*notes, f"left out, not finished: {names}"]
        notes.append(f"not finished, so that this is what was measured until now: {names}")
    return runs, notes


def _with_checkpoint(record: EvalRecord, name: str) -> EvalRecord:
    if record.model.checkpoint:
        return record
    return dataclasses.replace(record, model=dataclasses.replace(record.model, checkpoint=name))


def _drop_repeated(runs: Sequence[RunData]) -> None:
    """Keep a model that several runs evaluated, such as the base, in the first run only."""
    seen: set[Any] = set()
    for run in runs:
        kept: list[EvalRecord] = []
        for model, records in group(run.records, lambda record: record.model).items():
            anonymous = dataclasses.replace(model, checkpoint="", weights="")
            results = (anonymous, frozenset((r.item, _result(r)) for r in records))
            if model.is_trained or results not in seen:
                kept += records
            seen.add(results)
        run.records = kept


def _result(record: EvalRecord) -> Any:
    if isinstance(record, AnswerRecord):
        return record.scores.prediction
    assert isinstance(record, LossRecord | RecoveryRecord)
    return record.scores.nll


def read_run(path: Path) -> RunData:
    """One directory. Raises ValueError if it has no records.jsonl."""
    here = RunDir(path)
    if not here.records_file.is_file():
        raise ValueError(
            f"{path} has no records.jsonl; give run directories, or the --out of ctxext eval"
        )
    run = RunData(path, path.resolve().name, latest(read_records(here.records_file)))
    run.config = read_object(here.config_file, SETTINGS)
    run.provenance = read_object(here.provenance_file, PROVENANCE)
    run.budget = read_object(here.budget_file, BUDGET)
    # model.proof.json next to an export that is a single file
    for file in sorted(here.export.glob("*proof.json")):
        run.proof = read_object(file, PROOF)
        check_proof(run.proof, file)
    base_scaling = read_object(here.context_file, CONTEXT).get("base_scaling")
    run.method = _method_label(run.config, base_scaling)
    folders = [path, *sorted(p for p in here.baselines.glob("*") if p.is_dir())]
    configs = {folder: read_object(RunDir(folder).config_file, SETTINGS) for folder in folders}
    for folder in folders:
        rows = read_metrics(RunDir(folder).metrics_file)
        steps = [row for row in rows if "loss" in row]
        values = [(row.get("step", 0), measured(row)) for row in rows]
        evaluated = [(step, found) for step, found in values if found]
        name = _method_label(configs[folder], base_scaling) or folder.name
        if steps or evaluated:
            name = folder.name if name in run.losses | run.evaluations else name
        if steps:
            run.losses[name] = steps
        if evaluated:
            run.evaluations[name] = evaluated
    if (here.base / "model.json").is_file():
        _read_spectra(run, here, [configs[folder] for folder in folders], base_scaling)
    return run


def _method(value: Any) -> Any:
    """A method from JSON; None unless it is one of the package's own."""
    with contextlib.suppress(ValueError):
        return from_json(value)
    return None


def _method_label(config: dict[str, Any], base_scaling: Any) -> str:
    """The frequency and attention methods of an experiment; "" if they are unknown here.

    `base_scaling`: the frequencies of its base as it is, in JSON, which no method changes.
    """
    if not config:
        return ""
    values = [config.get(key) for key in ("rope", "attention")]
    methods = [_method(value) for value in values if value and value != base_scaling]
    if None in methods:
        return ""
    labels = [label([method]) for method in methods]
    return " + ".join(name for name in labels if name not in ("none", "causal")) or "none"


def _read_spectra(
    run: RunData, here: RunDir, configs: Sequence[dict[str, Any]], base_scaling: Any
) -> None:
    """Fill in the wavelengths of every method that the run and its baselines name."""
    try:
        shape = from_json(read_json(here.base / "model.json"))
        base = shape.rope_base()
    except (ValueError, AttributeError) as error:
        run.notes.append(f"no wavelengths: base/model.json is not a model's shape ({error})")
        return
    if not shape.layers.rotates:
        run.notes.append(
            f"no wavelengths: the model has {shape.positions} in place of rotary embeddings"
        )
        return
    if not all(kind.rotates for kind in shape.layer_kinds):
        run.notes.append(f"wavelengths are those of the layers that rotate: {shape.positions}")
    trained = [config.get("rope") for config in configs if config]
    spectra: dict[str, Spectrum] = {}
    length = run.config.get("train", {}).get("seq_len") or base.original_max_position_embeddings
    as_it_is: Any = Unscaled()
    with contextlib.suppress(ValueError):
        as_it_is = from_json(base_scaling) or Unscaled()
    for value in [*run.config.get("zero_shot", []), *trained]:
        try:
            method = from_json(value) or Unscaled()
        except ValueError as error:
            run.notes.append(f"wavelengths left out: {error}")
            continue
        if isinstance(method, RopeScaling):
            scaling = meant_scaling(method, as_it_is)
            name = "none" if scaling == as_it_is else label([scaling])
            curve = spectrum(scaling, base, length)
            spectra.setdefault(name, dataclasses.replace(curve, method=name))
    run.spectra = list(spectra.values())
    run.notes = list(dict.fromkeys(run.notes))
