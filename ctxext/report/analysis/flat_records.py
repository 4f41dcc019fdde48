"""Temporary: evaluation records as the flat dicts that the report still computes with."""

from collections.abc import Iterable
from typing import Any

from ctxext.evals.record import AnswerRecord, EvalRecord, LossRecord


def flat_rows(records: Iterable[Any]) -> list[dict[str, Any]]:
    """A flat dict for each record; what is one already stays."""
    return [flat_row(x) if isinstance(x, EvalRecord) else x for x in records]


def flat_row(record: EvalRecord) -> dict[str, Any]:
    model = record.model
    row: dict[str, Any] = {
        "checkpoint": model.checkpoint,
        "method": model.label,
        "rope": model.method,
        "steps": model.steps,
        "window": model.window,
        "eval": record.evaluation,
        "item": record.item,
        "seq_len": record.seq_len,
        "document": record.cluster.document,
        "exam": record.cluster.text,
        **record.facts,
    }
    if isinstance(record, AnswerRecord):
        question = record.question
        row |= {
            name: value for name, value in vars(question).items() if value not in (None, "", ())
        }
        row |= vars(record.scores)
        row["task"] = {"name": question.task, **question.fields}
        if question.label:
            row["label"] = question.title
    elif isinstance(record, LossRecord):
        scores = record.scores
        row |= {
            "estimator": record.estimator.name,
            "mean": record.estimator.mean,
            "stride": record.estimator.stride,
            "keys_from": record.estimator.keys_from,
            "nll": scores.nll,
            "count": scores.count,
            "bytes": scores.num_bytes,
        }
        if scores.windows is not None:
            row["windows"] = vars(scores.windows)
        if scores.by_position is not None:
            row["by_position"] = vars(scores.by_position)
    return row
