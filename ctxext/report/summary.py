"""The tables as data."""

from collections.abc import Iterable
from typing import Any

from ctxext.report.rows import Row, cells, condition, latest, perplexity, position, questions, rate
from ctxext.report.study import Study
from ctxext.report.verdict import findings


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """`verdict` in sentences; `effective`, `retrieval`, `controls`, `perplexity`, `by_position`: an entry per cell.

    Rates have Wilson intervals, perplexities bootstrap intervals over documents; `low` and `high` are null where one
    document alone gives none. `settings` is equal where the items are the same. Effective contexts are in tokens.
    """
    rows = latest(rows)
    asked = [row for row in rows if row["eval"] == "retrieval"]
    studies = [Study(question) for question in questions(rows)]
    return {
        "verdict": [finding.text for finding in findings(rows, studies)],
        "effective": [entry for study in studies for entry in _effective(study)],
        "retrieval": cells([row for row in asked if condition(row) == "needle"], rate),
        "controls": cells([row for row in asked if condition(row) != "needle"], rate),
        "perplexity": cells([row for row in rows if row["eval"] == "ppl"], perplexity),
        "by_position": cells([row for row in rows if "by_position" in row], position),
    }


def _effective(study: Study) -> list[Row]:
    return [
        {"task": study.question.task, "settings": study.question.settings, "checkpoint": arm.series[0],
         "method": arm.series[1], "window": arm.window, **far._asdict()}
        for arm, far in study.reaches.items()
    ]  # fmt: skip
