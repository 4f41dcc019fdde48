"""The JSON files of a run directory, checked before a page is made of them."""

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
METRICS: Shape = {"step": COUNT, "loss": FINITE}
"""A line of metrics.jsonl."""


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


def read_losses(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that have a loss. Raises ValueError naming a damaged line."""
    rows = read_jsonl(file)
    for number, row in enumerate(rows, 1):
        try:
            check_shape(row, METRICS, "it")
            if "loss" in row and "step" not in row:
                raise ValueError("it has a loss, but no step")
        except ValueError as error:
            raise ValueError(f"{file}, line {number}, is damaged: {error}; restore it") from None
    return [row for row in rows if "loss" in row]


def check_proof(proof: dict[str, Any], file: Path) -> None:
    """Raise ValueError if a reader has more or fewer errors than there are positions."""
    for reader in proof.get("readers", []):
        for key in ("tables", "rotated", "logits", "logits_exact_angles"):
            if key in reader and len(reader[key]) != len(proof.get("positions", [])):
                raise ValueError(
                    f"{file} is damaged: the {key} of {reader.get('reader')} are not one for each "
                    "position; prove the export again"
                )
