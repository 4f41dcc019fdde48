"""What trackers draw of rows: numbers by step, means by length."""

from typing import Any

Row = dict[str, Any]


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row of metrics but its step, as train/<name>."""
    return {
        f"train/{name}": x
        for name, x in row.items()
        if isinstance(x, int | float) and name != "step"
    }


def means(rows: list[Row]) -> dict[tuple[int, str], dict[str, float]]:
    """Mean of every true-or-false or fractional field by (seq_len, "eval/method"); controls are evals of their own.

    Of texts also nats_per_token, sum of nats / sum of tokens.
    """
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        control = "" if row.get("condition", "needle") == "needle" else f" {row['condition']}"
        groups.setdefault((row["seq_len"], f"{_asked(row)}{control}/{row['method']}"), []).append(
            row
        )
    return {key: _mean(found) for key, found in sorted(groups.items())}


def _mean(rows: list[Row]) -> dict[str, float]:
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if isinstance(value, bool | float)
    )
    values = {
        name: [float(row[name]) for row in rows if row.get(name) is not None] for name in names
    }
    found = {name: sum(v) / len(v) for name, v in values.items()}
    texts = [row for row in rows if "nll" in row and row.get("count")]
    if texts:
        found["nats_per_token"] = sum(row["nll"] for row in texts) / sum(
            row["count"] for row in texts
        )
    return found


def _asked(row: Row) -> str:
    """The task of a retrieval, else the evaluation."""
    return row["task"]["name"] if "task" in row else row["eval"]
