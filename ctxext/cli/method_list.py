"""Every discovered method as text or data, with the formats that can represent it."""

import dataclasses
import json
from typing import Any

from ctxext.cli import support_matrix
from ctxext.methods import all_methods, label, seam
from ctxext.model.config import SHAPES


def method_list(*, as_json: bool) -> str:
    """Name, seam, paper, formats and fields of every method."""
    methods = sorted(all_methods().items(), key=lambda item: (seam(item[1]), item[0]))
    rows = [_row(name, method) for name, method in methods]
    if as_json:
        return json.dumps(rows, indent=2)
    header = ["name", "seam", "arXiv", *support_matrix.COLUMNS, "fields"]
    lines = _aligned([header, *map(_cells, rows)])
    reasons = '--json has the reason of every "refused".'
    return "\n".join([*lines, "", *support_matrix.LEGEND, reasons])


def _row(name: str, method: type) -> dict[str, Any]:
    fields = dataclasses.fields(method)
    config = SHAPES["llama2-7b"]
    return {
        "name": name,
        "aliases": list(getattr(method, "aliases", ())),
        "seam": seam(method),
        "paper": getattr(method, "paper", ""),
        "summary": (method.__doc__ or "").split("\n")[0],
        "fields": {field.name: _default(field) for field in fields},
        "formats": support_matrix.places(support_matrix.example(method, config), config),
        "required": [field.name for field in fields if field.default is dataclasses.MISSING],
    }


def _default(field: dataclasses.Field) -> Any:
    """The default as data, by its name where it is a method; None where there is none."""
    if field.default is dataclasses.MISSING:
        return None
    return label([field.default]) if dataclasses.is_dataclass(field.default) else field.default


def _cells(row: dict[str, Any]) -> list[str]:
    fields = [
        name if name in row["required"] else f"{name}={default}"
        for name, default in row["fields"].items()
    ]
    formats = [support["how"] for support in row["formats"].values()]
    return [row["name"], row["seam"], row["paper"], *formats, ", ".join(fields)]


def _aligned(rows: list[list[str]]) -> list[str]:
    """A line per row, whose cells begin at the same places in all lines."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
