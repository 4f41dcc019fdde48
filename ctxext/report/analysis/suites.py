"""Suites of tasks such as RULER's: the mean over tasks at each length, and missing tasks."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ctxext.evals.curves import mean_of_means
from ctxext.evals.record import AnswerRecord, EvalRecord
from ctxext.evals.ruler import RULER_TASKS
from ctxext.evals.stats import Interval
from ctxext.report.analysis.records import Variant, answers, documents, group, is_control


@dataclass(frozen=True)
class SuiteMean:
    """The mean over tasks of one variant at one length."""

    suite: str
    variant: Variant
    seq_len: int
    percent: Interval
    """Over documents; missing tasks are not part of it."""
    error: float | None
    """Standard error in percentage points."""
    tasks: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "checkpoint": self.variant.model.checkpoint,
            "method": self.variant.model.label,
            "seq_len": self.seq_len,
            "percent": self.percent._asdict(),
            "error": self.error,
            "tasks": list(self.tasks),
            "missing": list(self.missing),
        }


def suite_means(records: Iterable[EvalRecord], variants: Sequence[Variant]) -> list[SuiteMean]:
    """Every suite, variant and length. A task is known by name and fields; all weigh the same.

    Questions over other texts or from another seed are another suite, named by what differs.
    """
    by_model = {variant.model: variant for variant in variants}
    of_suites = [r for r in answers(records) if r.question.suite and not is_control(r)]
    means = []
    for suite, of_suite in _by_protocol(of_suites).items():
        expected = _expected_tasks(suite, of_suite)
        cells = group(of_suite, lambda record: (record.model, record.seq_len))
        for (model, seq_len), own in cells.items():
            mean, error = mean_of_means(
                [record.scores.score for record in own], _task_keys(own), documents(own)
            )
            tasks = tuple(dict.fromkeys(map(_task_name, own)))
            present = set(map(_normalized, tasks))
            means.append(
                SuiteMean(
                    suite,
                    by_model[model],
                    seq_len,
                    mean.scaled(100),
                    error and 100 * error,
                    tasks,
                    tuple(name for name in expected if _normalized(name) not in present),
                )
            )
    return means


def _by_protocol(records: Sequence[AnswerRecord]) -> dict[str, list[AnswerRecord]]:
    """Records by suite, and by its text and seed if it was asked with several."""
    named: dict[str, list[AnswerRecord]] = {}
    for suite, of_suite in group(records, lambda record: record.question.suite).items():
        by_protocol = group(of_suite, _common_protocol)
        for protocol, own in by_protocol.items():
            named[f"{suite} [{protocol}]" if len(by_protocol) > 1 else suite] = own
    return named


def _common_protocol(record: AnswerRecord) -> str:
    """The settings that all tasks of a suite share."""
    return ", ".join(
        f"{name}={record.protocol[name]}" for name in ("source", "seed") if name in record.protocol
    )


def _task_keys(records: Sequence[AnswerRecord]) -> list[str]:
    """By label where there is one, else by task and fields."""
    return [
        record.question.label
        or json.dumps([record.question.task, record.question.fields], sort_keys=True)
        for record in records
    ]


def _expected_tasks(suite: str, records: Sequence[AnswerRecord]) -> list[str]:
    """The tasks that any variant was asked, and all of RULER's if these have its names."""
    names = list(dict.fromkeys(map(_task_name, records)))
    is_ruler = suite.lower().startswith("ruler") and set(map(_normalized, names)) <= set(
        RULER_TASKS
    )
    known = tuple(RULER_TASKS) if is_ruler else ()
    return [*known, *(name for name in names if _normalized(name) not in known)]


def _task_name(record: AnswerRecord) -> str:
    return record.question.label or record.question.task


def _normalized(name: str) -> str:
    return name.lower().replace("-", "_")
