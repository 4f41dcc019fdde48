"""What run directories hold, read for a page: rows, losses, frequencies, proof, provenance. No code of a run is run."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctxext.evals.record import read_records
from ctxext.files import read_json, read_jsonl
from ctxext.methods import label
from ctxext.report.analysis.flat_records import flat_rows
from ctxext.report.analysis.records import Row, group, latest, series
from ctxext.report.analysis.wavelengths import Spectrum, spectrum
from ctxext.rope import RopeScaling
from ctxext.rundir import RunDir
from ctxext.serialization import from_json


@dataclass
class RunData:
    """One directory; what it lacks is empty, what could not be read has a line in `notes`."""

    path: Path
    name: str
    rows: list[Row]
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, list[Row]] = field(default_factory=dict)
    spectra: list[Spectrum] = field(default_factory=list)
    method: str = ""
    """What the experiment trains, as rows call it; "" if that is not known here."""
    notes: list[str] = field(default_factory=list)


def read(paths: Sequence[Path]) -> list[RunData]:
    """The directories, in order; rows of several are told apart by the name of their run as `checkpoint`.

    Raises ValueError for a directory without records.jsonl.
    """
    runs = [read_one(Path(path)) for path in paths]
    if len({run.name for run in runs}) < len(runs):
        for run in runs:
            run.name = str(run.path)
    if len(runs) > 1:
        for run in runs:
            run.rows = [{**row, "checkpoint": row["checkpoint"] or run.name} for row in run.rows]
        _drop_repeated(runs)
    return runs


def rows_of(path: Path) -> list[Row]:
    """Raises ValueError if the directory has no records.jsonl."""
    if not RunDir(path).records_file.is_file():
        raise ValueError(
            f"{path} holds no records.jsonl; give run directories, or the --out of ctxext eval"
        )
    return latest(flat_rows(read_records(RunDir(path).records_file)))


def _drop_repeated(runs: Sequence[RunData]) -> None:
    """The same model evaluated in two runs, such as the base zero-shot, is one variant: that of the first run."""
    seen: set[Any] = set()
    for run in runs:
        kept = []
        for (_, method), rows in group(run.rows, series).items():
            said = (
                method,
                frozenset(
                    (row["item"], repr(row.get("prediction", row.get("nll")))) for row in rows
                ),
            )
            trained = any(row.get("steps") != 0 for row in rows)
            if trained or said not in seen:
                kept += rows
            seen.add(said)
        run.rows = kept


def read_one(path: Path) -> RunData:
    """One directory. Raises ValueError if it has no records.jsonl."""
    run, here = RunData(path, path.resolve().name, rows_of(path)), RunDir(path)
    run.config, run.provenance = (_json(file) for file in (here.config_file, here.provenance_file))
    for file in sorted(here.export.glob("*proof.json")):  # model.proof.json next to a single file
        run.proof = _json(file)
    own = _json(here.base / "scaling.json")
    run.method = _method_label({**run.config, "rope": run.config.get("rope") or own})
    folders = [path, *sorted(p for p in here.baselines.glob("*") if p.is_dir())]
    configs = {folder: _json(RunDir(folder).config_file) for folder in folders}
    for folder in folders:
        steps = [row for row in read_jsonl(RunDir(folder).metrics_file) if "loss" in row]
        if steps:
            name = _method_label(configs[folder]) or folder.name
            run.losses[name if name not in run.losses else folder.name] = steps
    if (here.base / "model.json").is_file():
        _spectra(run, here, [configs[folder] for folder in folders])
    return run


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _scaling(value: Any) -> Any:
    """A method from JSON, None if it is none of the package's own."""
    with contextlib.suppress(ValueError):
        return from_json(value)
    return None


def _method_label(config: dict[str, Any]) -> str:
    """What trained this, frequencies and attention; "" if that is not known here."""
    if not config:
        return ""
    parts = [_scaling(config[key]) for key in ("rope", "attention") if config.get(key)]
    if any(part is None for part in parts):
        return ""
    return (
        " + ".join(name for name in (label([p]) for p in parts) if name not in ("none", "causal"))
        or "none"
    )


def _spectra(run: RunData, here: RunDir, configs: Sequence[dict[str, Any]]) -> None:
    try:
        base = from_json(read_json(here.base / "model.json")).rope_base()
    except (ValueError, AttributeError) as error:
        run.notes.append(f"no wavelengths: base/model.json is not a model's shape ({error})")
        return
    own = _json(here.base / "scaling.json")
    wanted = [
        own,
        *run.config.get("zero_shot", []),
        *(config.get("rope") or own for config in configs if config),
    ]
    found: dict[str, Spectrum] = {}
    length = run.config.get("train", {}).get("seq_len") or base.original_max_position_embeddings
    for value in filter(None, wanted):
        try:
            method = from_json(value)
            if isinstance(method, RopeScaling):
                found.setdefault(label([method]), spectrum(method, base, length))
        except ValueError as error:
            run.notes.append(f"wavelengths left out: {error}")
    run.spectra = list(found.values())
    run.notes = list(dict.fromkeys(run.notes))
