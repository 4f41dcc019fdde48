"""Wrong answers by kind of mistake, for each variant and length."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ctxext.evals.record import AnswerRecord
from ctxext.report.analysis.records import TaskResults, Variant, labels
from ctxext.tasks.building.scores import Failure

RIGHT = "right"
KINDS: tuple[Failure, ...] = get_args(Failure)


@dataclass(frozen=True, eq=False)
class Mistakes:
    """The answers of one variant at one length, by kind."""

    variant: Variant
    records: list[AnswerRecord]
    counts: dict[str, int]
    """Right answers, then every kind of mistake."""

    @property
    def seq_len(self) -> int:
        return self.records[0].seq_len

    @property
    def shares(self) -> dict[str, float]:
        return {kind: count / len(self.records) for kind, count in self.counts.items()}

    def to_json(self) -> dict[str, Any]:
        first = self.records[0]
        return {"task": first.question.task, **labels(first), **self.counts}


def count_kinds(records: Sequence[AnswerRecord]) -> dict[str, int]:
    """Count right answers and each kind of mistake. Raises ValueError for an unknown kind."""
    counts = Counter(RIGHT if r.scores.correct else str(r.scores.failure) for r in records)
    if unknown := set(counts) - {RIGHT, *KINDS}:
        raise ValueError(
            f"records name unknown kinds of mistakes: {', '.join(sorted(unknown))}; read them with "
            "the version of ctxext that wrote them"
        )
    return {kind: counts[kind] for kind in (RIGHT, *KINDS)}


def mistakes(task: TaskResults, variants: Sequence[Variant] | None = None) -> list[Mistakes]:
    """One entry per variant, of all by default, and length."""
    entries = []
    for variant in task.variants if variants is None else variants:
        for seq_len in task.seq_lens:
            if records := task.select(variant, seq_len):
                entries.append(Mistakes(variant, records, count_kinds(records)))
    return entries
