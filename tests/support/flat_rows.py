"""Temporary: flat rows, as tests of the report still make them, and the records that they are of."""

import re
from pathlib import Path
from typing import Any

from ctxext.evals.record import (
    AnswerRecord,
    AnswerScores,
    Cluster,
    EvalRecord,
    EvaluatedModel,
    LossEstimator,
    LossRecord,
    LossScores,
    PositionLosses,
    Question,
    WindowLosses,
)
from ctxext.report.analysis.flat_records import flat_row, flat_rows
from support import planted


def passkey_row(*args: Any, method: str | None = None, **options: Any) -> dict[str, Any]:
    row = flat_row(planted.passkey_record(*args, **options))
    for name in ("document", "exam"):  # follow from the haystack and the item, which tests change
        del row[name]
    row.setdefault("haystack", ())
    return row | ({"method": method} if method else {})


def planted_rows(n: int = 12) -> list[dict[str, Any]]:
    return flat_rows(planted.planted_records(n))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    planted.write_records(path, map(record, rows))


def planted_run(path: Path, rows: list[dict] | None = None, name: str = "planted") -> Path:
    return planted.planted_run(path, None if rows is None else map(record, rows), name)


def _pick(kind: Any, row: dict[str, Any], **more: Any) -> Any:
    names = kind.__dataclass_fields__
    return kind(**({name: row[name] for name in names if name in row} | more))


def record(row: dict[str, Any]) -> EvalRecord:
    method = row["method"]
    length = re.search(r" at (\d+)$", method)
    in_run = length or method.endswith("zero-shot")
    settings = row["item"].split("/")[1]
    for control in ("-no-needle", "-needle-only"):
        settings = settings.removesuffix(control)
    haystack = row.get("haystack") or ((row["item"],),)
    common: dict[str, Any] = {
        "model": EvaluatedModel(
            window=row["window"],
            rope=row.get("rope", method),
            checkpoint=row["checkpoint"],
            steps=row.get("steps", 0),
            train_seq_len=(int(length[1]) if length else 1024) if in_run else None,
        ),
        "evaluation": row["eval"],
        "item": row["item"],
        "settings": settings,
        "seq_len": row["seq_len"],
        "cluster": Cluster(row.get("document", haystack[0][0]), row.get("exam", row["item"])),
    }
    if "task" in row:
        task = dict(row["task"])
        fields = {
            "task": task.pop("name"),
            "fields": task,
            "needle_item": row["item"].replace("-no-needle/", "/", 1),
            "gold": (1,),
            "condition": row.get("condition", "needle"),
            "tokens": row.get("tokens", row["seq_len"]),
            "label": row.get("label", "").partition("/")[2],
        }
        scores = {"text": "", "metric": "exact", "score": 0.0, "answer_logprobs": ()}
        return AnswerRecord(
            **common,
            question=_pick(Question, row, **fields),
            scores=_pick(AnswerScores, scores | row),
        )
    windows, bins = row.get("windows"), row.get("by_position")
    return LossRecord(
        **common,
        estimator=LossEstimator(
            row.get("estimator", "same-target"),
            row.get("mean", "token"),
            row.get("stride"),
            row.get("keys_from", ""),
        ),
        scores=LossScores(
            row["nll"],
            row["count"],
            row["bytes"],
            windows and _pick(WindowLosses, windows),
            bins and _pick(PositionLosses, bins),
        ),
    )
