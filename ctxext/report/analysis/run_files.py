"""The JSON files of a run directory, checked before a page is made of them."""

import re
from pathlib import Path
from typing import Any

from ctxext.files import read_json, read_jsonl
from ctxext.interop.validation import (
    COUNT,
    FINITE,
    FLAG,
    OBJECT,
    TEXT,
    Shape,
    check_shape,
    optional,
)

CONTEXT: Shape = {"base_scaling": optional(OBJECT)}
"""base/context.json."""
PROVENANCE: Shape = {"versions": {"*": optional(TEXT)}}
PROOF: Shape = {
    "equal": FLAG,
    "against": TEXT,
    "dtype": TEXT,
    "positions": [COUNT],
    "weights_that_differ": [TEXT],
    "weights_that_differ_by_rounding": [TEXT],
    "readers_not_run": {"*": TEXT},
    "readers": [
        {
            "reader": TEXT,
            "version": TEXT,
            "inv_freq": FINITE,
            "tables": [FINITE],
            "rotated": [FINITE],
            "logits": [FINITE],
            "logits_exact_angles": [FINITE],
        }
    ],
    "known_incompatibilities": [{"reader": TEXT, "effect": TEXT, "source": TEXT}],
}
BUDGET: Shape = {
    "budget": TEXT,
    "texts": optional(COUNT),
    "evaluations": [{"title": TEXT, "asked": COUNT, "declared": COUNT}],
}
STAGES: Shape = {"stages": [{"kind": TEXT}]}
"""What the clock of a run writes, as far as a report asks."""
METRICS: Shape = {"step": COUNT, "loss": FINITE}
"""A line of metrics.jsonl."""
MEASURED: Shape = {"*": FINITE}
MEASURE = re.compile(r"[^@]{1,60}@[1-9]\d{0,9}")
"""The name of a measure: a task or "loss", and a length in tokens."""


def read_object(file: Path, shape: Shape) -> dict[str, Any]:
    """The object in a file; {} if there is none. Raises ValueError naming file and part."""
    if not file.is_file():
        return {}
    value = read_json(file)
    try:
        check_shape(value, shape, "it")
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}; restore it, or remove it") from None
    return value


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. Raises ValueError naming a damaged one."""
    rows = read_jsonl(file)
    for number, row in enumerate(rows, 1):
        try:
            check_shape(row, METRICS, "it")
            if "step" not in row and ("loss" in row or measured(row)):
                raise ValueError("it has a loss, but no step")
            check_shape(measured(row), MEASURED, "it")
        except ValueError as error:
            raise ValueError(f"{file}, line {number}, is damaged: {error}; restore it") from None
    return rows


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """The values of an evaluation during training, such as "passkey@8192"; {} in other lines."""
    prefix = "eval/"
    values = {name.removeprefix(prefix): x for name, x in row.items() if name.startswith(prefix)}
    return {name: value for name, value in values.items() if MEASURE.fullmatch(name)}


def check_proof(proof: dict[str, Any], file: Path) -> None:
    """Raise ValueError if a reader has more or fewer errors than there are positions."""
    for reader in proof.get("readers", []):
        for key in ("tables", "rotated", "logits", "logits_exact_angles"):
            if key in reader and len(reader[key]) != len(proof.get("positions", [])):
                raise ValueError(
                    f"{file} is damaged: the {key} of {reader.get('reader')} are not one for each "
                    "position; prove the export again"
                )
