"""Curves for trackers: the numbers of training metrics by step, and means of records by length."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ctxext.evals.growing_window import GrowingWindow
from ctxext.evals.record import (
    AnswerRecord,
    EvalRecord,
    LossRecord,
    PositionLosses,
    RecoveryRecord,
    distinct_titles,
)


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row of metrics except its step, as train/<name>."""
    return {
        f"train/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step"
    }


def eval_logs(records: Iterable[EvalRecord]) -> Iterator[dict[str, float]]:
    """The means of each length and evaluation as one log entry with its `eval/seq_len`.

    The loss of whole books by position is one entry per position.
    """
    records = list(records)
    for (seq_len, group), values in means(records).items():
        named = {f"eval/{group}/{name}": value for name, value in values.items()}
        yield {"eval/seq_len": seq_len, **named}
    yield from _by_position(records)


def _by_position(records: Sequence[EvalRecord]) -> Iterator[dict[str, float]]:
    """Nats per token of books by the most tokens that their bin had seen."""
    groups: dict[str, list[PositionLosses]] = {}
    for record in records:
        if not isinstance(record, LossRecord) or record.estimator.name != GrowingWindow.name:
            continue
        if record.scores.by_position:
            name = f"{record.evaluation} by position/{record.model.label}"
            groups.setdefault(name, []).append(record.scores.by_position)
    for name, books in groups.items():
        sums: dict[int, list[float]] = {}
        for book in books:
            for edge, nll, count in zip(book.edges[1:], book.nll, book.count, strict=True):
                total = sums.setdefault(edge - 1, [0.0, 0.0])
                total[0] += nll
                total[1] += count
        for position, (nll, count) in sorted(sums.items()):
            yield {"eval/seq_len": position, f"eval/{name}/nats_per_token": nll / count}


def means(records: Iterable[EvalRecord]) -> dict[tuple[int, str], dict[str, float]]:
    """Means by (seq_len, "<evaluation>/<model>") of every true-or-false or fractional field.

    Controls are separate evaluations, and so is an evaluation with other settings, whose name says
    what differs. Texts also have nats_per_token: all nats / all tokens.
    """
    records = list(records)
    names = distinct_titles(records, _name)
    groups: dict[tuple[int, str], list[EvalRecord]] = {}
    for record in records:
        evaluation = names[record.settings] + _condition(record)
        key = record.seq_len, f"{evaluation}/{record.model.label}"
        groups.setdefault(key, []).append(record)
    return {key: _mean(group) for key, group in sorted(groups.items())}


def _name(record: EvalRecord) -> str:
    """The task of questions, else the evaluation."""
    return record.question.task if isinstance(record, AnswerRecord) else record.evaluation


def _condition(record: EvalRecord) -> str:
    """The condition of a control."""
    if not isinstance(record, AnswerRecord) or record.question.condition == "needle":
        return ""
    return f" {record.question.condition}"


def _mean(records: Sequence[EvalRecord]) -> dict[str, float]:
    rows = [record.columns() for record in records]
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if isinstance(value, bool | float)
    )
    mean: dict[str, float] = {}
    for name in names:
        values = [float(row[name]) for row in rows if row.get(name) is not None]
        mean[name] = sum(values) / len(values)
    scores = [r.scores for r in records if isinstance(r, LossRecord) and r.scores.count]
    if scores:
        mean["nats_per_token"] = sum(s.nll for s in scores) / sum(s.count for s in scores)
    answers = [r.scores for r in records if isinstance(r, RecoveryRecord)]
    alone = sum(s.nll_without - s.nll_alone for s in answers)
    if alone > 0:
        mean["recovery"] = sum(s.nll_without - s.nll for s in answers) / alone
    return mean
