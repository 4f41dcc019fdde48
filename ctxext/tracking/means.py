"""What trackers draw of rows: numbers by step, means by length."""

from typing import Any

Row = dict[str, Any]


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row of metrics but its step, as train/<name>."""
    return {f"train/{name}": x for name, x in row.items() if isinstance(x, int | float) and name != "step"}


def means(rows: list[Row]) -> dict[tuple[int, str], dict[str, float]]:
    """Mean of every true-or-false or fractional field by (seq_len, "eval/method"); controls are evals of their own."""
    groups: dict[tuple[int, str], dict[str, list[float]]] = {}
    for row in rows:
        control = "" if row.get("condition", "needle") == "needle" else f" {row['condition']}"
        fields = groups.setdefault((row["seq_len"], f"{_asked(row)}{control}/{row['method']}"), {})
        for name, value in row.items():
            if isinstance(value, bool | float):
                fields.setdefault(name, []).append(float(value))
    found = {key: {name: sum(v) / len(v) for name, v in fields.items()} for key, fields in groups.items()}
    return dict(sorted(found.items()))


def _asked(row: Row) -> str:
    """The task of a retrieval, else the evaluation."""
    return row["task"]["name"] if "task" in row else row["eval"]
