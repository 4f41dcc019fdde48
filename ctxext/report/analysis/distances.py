"""Answers about texts longer than the window, by how far the needle is from the question."""

from collections.abc import Sequence
from dataclasses import dataclass

from ctxext.evals.record import AnswerRecord
from ctxext.report.analysis.records import num_correct


@dataclass(frozen=True)
class ByReach:
    """The same variant's answers, split where its window before extension ends.

    A needle within one window of the question needs no longer context than pre-training had, though
    the text is longer: right answers there do not show that a model reads further.
    """

    within: list[AnswerRecord]
    """The needle is less than one window away from the end of the prompt."""
    farther: list[AnswerRecord]


def by_reach(records: Sequence[AnswerRecord]) -> ByReach | None:
    """The split of records of one length; None where it is not known, or nothing to split."""
    if not records or any(record.question.distance is None for record in records):
        return None
    if not all(record.beyond_window for record in records):
        return None
    split: tuple[list[AnswerRecord], list[AnswerRecord]] = ([], [])
    for record in records:
        split[(record.question.distance or 0) >= record.model.window].append(record)
    return ByReach(*split)


def guessed(records: Sequence[AnswerRecord]) -> float | None:
    """How many would be right by taking any of the values in a text; None where it has no others.

    The values are those of the records in the text, whose distances a question holds.
    """
    counts = [len(record.question.distances) for record in records]
    return sum(1 / count for count in counts) if min(counts, default=0) > 1 else None


def right_of(records: Sequence[AnswerRecord]) -> str:
    """Such as: 9 of 32."""
    return f"{num_correct(records)} of {len(records)}"
