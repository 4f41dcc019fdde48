"""Where the numbers come from, and whether the export is what was measured: facts to read."""

import shlex
from collections.abc import Iterator
from typing import Any

from ctxext.report.analysis.runs import RunData
from ctxext.report.pages.tables import Table

SHORT = 12
"""Characters of a hash that are shown."""


def facts(run: RunData) -> list[tuple[str, str]]:
    """(name, value) pairs; what the run does not say is left out."""
    said, train = run.provenance, run.config.get("train") or {}
    found = [
        ("experiment", run.config.get("name")),
        ("base", run.config.get("init")),
        ("training", _training(train)),
        ("data", "; ".join(_data(said.get("data")))),
        ("tokenizer", _hash(said.get("tokenizer"))),
        ("seed", said.get("seed")),
        ("device", said.get("device")),
        ("commit", _hash(said.get("git_commit"))),
        ("versions", ", ".join(f"{k} {v}" for k, v in (said.get("versions") or {}).items() if v)),
        ("rows", f"{len(run.rows):,}"),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "")] + _commands(run)


def _commands(run: RunData) -> list[tuple[str, str]]:
    """How to do it again. The resolved values, options of the command line included, are in config.json."""
    name = shlex.quote(run.name)
    again = run.provenance.get("command")
    if not again and (run.path / "experiment.py").is_file():
        again = f"ctxext run {name}/experiment.py --run-dir NEW (compare NEW/config.json with {name}/config.json)"
    return [
        *([("to reproduce", str(again))] if again else []),
        ("this page", f"ctxext report {name}"),
    ]


def _training(train: dict[str, Any]) -> str:
    try:
        rows = train["batch_size"] * train.get("accumulate", 1)
        return (
            f"{train['steps']:,} steps x {rows} rows x {train['seq_len']:,} tokens = "
            f"{train['steps'] * rows * train['seq_len']:,} tokens, {train.get('dtype', '')}"
        )
    except (KeyError, TypeError):
        return ""


def _data(said: Any) -> Iterator[str]:
    """The sources, each with what it holds and its hash shortened."""
    if isinstance(said, dict):
        if "sha256" in said:
            counts = [
                f"{said[k]:,} {k}" for k in ("documents", "tokens") if isinstance(said.get(k), int)
            ]
            yield " ".join([str(said.get("kind", "")), *counts, _hash(said["sha256"])]).strip()
        for key, value in said.items():
            if key != "files":
                yield from _data(value)
    elif isinstance(said, list):
        for value in said:
            yield from _data(value)


def _hash(value: Any) -> str:
    """The beginning of a hash, with what is appended to it, such as "-dirty"."""
    text = "" if value is None else str(value)
    return (
        text if len(text) < 40 else text[:SHORT] + (text[text.index("-") :] if "-" in text else "")
    )


def proof_table(proof: dict[str, Any]) -> tuple[str, Table, list[str]]:
    """(verdict, errors of every reader, notes) of proof.json."""
    readers = proof.get("readers", [])
    names = " and ".join(f"{r.get('reader')} {r.get('version')}" for r in readers) or "no reader"
    equal = "EQUAL" if proof.get("equal") else "NOT EQUAL"
    verdict = f"{equal} to {proof.get('against', 'the model')}, read by {names} ({proof.get('dtype')} weights)."
    kinds = {
        "tables": "cos and sin",
        "rotated": "rotated q and k",
        "logits": "logits, its angles",
        "logits_exact_angles": "logits, exact angles",
    }
    lines = [
        [f"{r.get('reader')}: {text}", *(f"{x:.1e}" for x in r[kind])]
        for r in readers
        for kind, text in kinds.items()
        if r.get(kind)
    ]
    notes = [
        f"Frequencies in {r['reader']} differ by {r['inv_freq']:.1e} (relative)."
        for r in readers
        if "inv_freq" in r
    ]
    notes += [
        f"Not read by {name}: {why}." for name, why in proof.get("readers_not_run", {}).items()
    ]
    notes += [
        f"Wrong in {known['reader']}: {known['effect']}."
        for known in proof.get("known_incompatibilities", [])
    ]
    if proof.get("weights_that_differ"):
        notes.append(f"Weights that differ: {', '.join(proof['weights_that_differ'])}.")
    positions = [f"position {p:,}" for p in proof.get("positions", [])]
    return (
        verdict,
        Table(
            "Largest difference between the readers and the model", ["reader", *positions], lines
        ),
        notes,
    )
