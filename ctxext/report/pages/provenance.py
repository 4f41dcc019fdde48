"""Where the numbers come from, and whether the export is the model that was measured."""

import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxext.interop.model_card import public_command, public_name, versions_text
from ctxext.report.analysis.records import group
from ctxext.report.analysis.run_files import PROVENANCE, read_object
from ctxext.report.analysis.runs import RunData
from ctxext.report.pages.budget import left_out
from ctxext.report.pages.sources import source_text, sources_of
from ctxext.report.table import Table, table_of_texts
from ctxext.rundir import SETTINGS, RunDir

HASH_LENGTH = 12
"""Characters of a hash that are shown."""


def facts(run: RunData) -> list[tuple[str, str]]:
    """(name, value) pairs; what the run does not record is left out."""
    provenance = run.provenance
    recorded = {
        "experiment": run.config.get("name"),
        "base": run.config.get("init"),
        "held in": _quantized_text(run.config.get("trainable"), provenance.get("quantized")),
        "training": _training_text(run.config.get("train") or {}),
        "data": "; ".join(_data_texts(provenance.get("data"))),
        "tokenizer": _short_hash(provenance.get("tokenizer")),
        "seed": provenance.get("seed"),
        "device": provenance.get("device"),
        "commit": _short_hash(provenance.get("git_commit")),
        "versions": versions_text(provenance.get("versions") or {}),
        "evaluated": "; ".join(_evaluated(run)),
        "texts": "; ".join(_texts(run)),
        "records": f"{len(run.records):,}",
        "evaluations": left_out(run.budget),
    }
    known = [(name, str(value)) for name, value in recorded.items() if value not in (None, "")]
    return known + _commands(run)


def _evaluated(run: RunData) -> list[str]:
    """The checkpoints that records are of, with the beginning of their digests."""
    models = {
        (record.model.checkpoint, record.model.weights, record.model.quantized)
        for record in run.records
    }
    return [
        " ".join([name, *_in_parentheses(_short_hash(weights), quantized)])
        for name, weights, quantized in sorted(models)
    ]


def _in_parentheses(weights: str, quantized: str) -> list[str]:
    details = [weights, f"quantized: {quantized}" if quantized else ""]
    text = ", ".join(filter(None, details))
    return [f"({text})"] if text else []


def _texts(run: RunData) -> list[str]:
    """What the evaluations read: "growing-window, recovery: files of ..."."""
    by_source: dict[str, list[str]] = {}
    for evaluation, records in group(run.records, lambda record: record.evaluation).items():
        for source in sources_of(records):
            by_source.setdefault(source, []).append(evaluation)
    return [f"{', '.join(names)}: {source_text(source)}" for source, names in by_source.items()]


def origin(run: RunDir, steps: int) -> dict[str, str]:
    """Where the weights of a run after `steps` come from, for those who get them.

    The base and, of a run that trained, its training, data, versions, commit and command.
    """
    settings = read_object(run.config_file, SETTINGS)
    recorded = read_object(run.provenance_file, PROVENANCE)
    base = settings.get("init")
    texts = {"base model": public_name(base) if base else ""}
    if steps:
        texts["training"] = _training_text({**(settings.get("train") or {}), "steps": steps})
        texts["data"] = "; ".join(dict.fromkeys(_data_texts(recorded.get("data"))))
        texts["versions"] = versions_text(recorded.get("versions") or {})
        texts["commit"] = str(recorded.get("git_commit") or "")
        texts["command"] = public_command(recorded.get("command"))
    return {name: text for name, text in texts.items() if text}


def _commands(run: RunData) -> list[tuple[str, str]]:
    """How to do it again. config.json has the resolved values of all options."""
    name = shlex.quote(run.name)
    commands = [("this page", f"ctxext report {name}")]
    again = _quoted(run.provenance.get("command"))
    if not again and (run.path / "config.json").is_file():
        again = f"ctxext run {name}/config.json --run-dir NEW"
    return [("to reproduce", str(again)), *commands] if again else commands


def _quoted(command: Any) -> str:
    """A recorded command as one that a shell runs and nothing besides; "" for anything else."""
    try:
        return shlex.join(shlex.split(command)) if isinstance(command, str) else ""
    except ValueError:  # an open quote
        return ""


def _quantized_text(trainable: Any, recorded: Any) -> str:
    """The form of a quantized base with its bytes; empty for a base that is not quantized."""
    form = trainable.get("quantize", "none") if isinstance(trainable, dict) else "none"
    if form == "none":
        return ""
    try:
        held, in_bfloat16 = recorded["bytes"], recorded["bytes_in_bfloat16"]
        return (
            f"{form}: the kernels of its layers take {held:,} bytes ({in_bfloat16:,} in bfloat16)"
        )
    except (KeyError, TypeError, ValueError):
        return str(form)


def _training_text(train: dict[str, Any]) -> str:
    try:
        rows = train["batch_size"] * train.get("accumulate", 1)
        tokens = train["steps"] * rows * train["seq_len"]
        return (
            f"{train['steps']:,} steps x {rows} rows x {train['seq_len']:,} tokens = "
            f"{tokens:,} tokens, {train.get('dtype', '')}"
        )
    except (KeyError, TypeError):
        return ""


def _data_texts(data: Any) -> Iterator[str]:
    """The sources, each with what it holds and its hash shortened."""
    if isinstance(data, dict):
        if "sha256" in data:
            counts = [
                f"{data[unit]:,} {unit}"
                for unit in ("documents", "tokens")
                if isinstance(data.get(unit), int)
            ]
            yield " ".join(
                [str(data.get("kind", "")), *counts, _short_hash(data["sha256"])]
            ).strip()
        for key, value in data.items():
            if key != "files":
                yield from _data_texts(value)
    elif isinstance(data, list):
        for value in data:
            yield from _data_texts(value)


def _short_hash(value: Any) -> str:
    """The beginning of a hash, with what is appended to it, such as "-dirty"."""
    text = "" if value is None else str(value)
    if len(text) < 40:
        return text
    _, dash, appended = text.partition("-")
    return text[:HASH_LENGTH] + dash + appended


class Proof(NamedTuple):
    """proof.json in words: the verdict, the errors of every reader, and notes."""

    verdict: str
    errors: Table[Any]
    notes: list[str]


ERRORS = {
    "tables": "cos and sin",
    "rotated": "rotated q and k",
    "logits": "logits, its angles",
    "logits_exact_angles": "logits, exact angles",
}
"""The keys of readers' errors in proof.json, with their names on the page."""


def _frequencies_note(reader: dict[str, Any]) -> str:
    """How far the frequencies of a reader are from the model's."""
    name = reader.get("reader")
    if not reader["inv_freq"]:
        return f"Frequencies in {name} are equal."
    return f"Frequencies in {name} differ by {reader['inv_freq']:.1e} (relative)."


def describe_proof(proof: dict[str, Any]) -> Proof:
    """The contents of proof.json in words."""
    readers = proof.get("readers", [])
    names = " and ".join(f"{r.get('reader')} {r.get('version')}" for r in readers) or "no reader"
    equal = "EQUAL" if proof.get("equal") else "NOT EQUAL"
    verdict = (
        f"{equal} to {proof.get('against', 'the model')}, read by {names} "
        f"({proof.get('dtype')} weights)."
    )
    lines = [
        [f"{reader.get('reader')}: {text}", *(f"{x:.1e}" for x in reader[kind])]
        for reader in readers
        for kind, text in ERRORS.items()
        if reader.get(kind)
    ]
    notes = [_frequencies_note(reader) for reader in readers if "inv_freq" in reader]
    for name, why in proof.get("readers_not_run", {}).items():
        notes.append(f"Not read by {name}: {why}.")
    for known in proof.get("known_incompatibilities", []):
        source = f" ({known['source']})" if "source" in known else ""
        notes.append(f"Wrong in {known['reader']}: {known['effect']}{source}.")
    if proof.get("weights_that_differ"):
        notes.append(f"Weights that differ: {', '.join(proof['weights_that_differ'])}.")
    notes += [f"Not the model's: {text}." for text in proof.get("settings_that_differ", [])]
    if proof.get("settings_not_known"):
        notes.append(f"Not compared, as unknown: {', '.join(proof['settings_not_known'])}.")
    positions = [f"position {p:,}" for p in proof.get("positions", [])]
    title = "Largest difference between the readers and the model"
    return Proof(verdict, table_of_texts(title, ["reader", *positions], lines), notes)
