"""How long the texts really were: achieved tokens and depths next to those that were asked for."""

from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from ctxext.evals.record import AnswerRecord
from ctxext.report.analysis.pooling import without_seed
from ctxext.report.analysis.records import TaskResults, group


class Spread(NamedTuple):
    """Minimum, median and maximum."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, eq=False)
class AchievedLengths:
    """The prompts of one nominal length, each once, whichever variants it was put to."""

    task: TaskResults
    seq_len: int
    records: list[AnswerRecord]

    @property
    def exact(self) -> bool:
        """Whether every prompt, with the space for its answer, is exactly as long as asked."""
        return all(record.question.tokens == self.seq_len for record in self.records)

    @property
    def tokens(self) -> Spread:
        values = [record.question.tokens for record in self.records]
        return Spread(min(values), median(values), max(values))

    @property
    def depths(self) -> Spread | None:
        """Achieved depths; None for questions about the whole text."""
        values = [
            record.question.depth_achieved
            for record in self.records
            if record.question.depth_achieved is not None
        ]
        return Spread(min(values), median(values), max(values)) if values else None

    @property
    def depth_error(self) -> float:
        """The largest distance of a depth from the one that was asked for."""
        questions = [record.question for record in self.records]
        errors = [
            abs(q.depth_achieved - q.depth)
            for q in questions
            if q.depth is not None and q.depth_achieved is not None
        ]
        return max(errors, default=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task.task,
            "settings": self.task.settings,
            "seq_len": self.seq_len,
            "prompts": len(self.records),
            "tokens": list(self.tokens),
            "depth": list(self.depths) if self.depths else None,
        }


def achieved_lengths(task: TaskResults) -> list[AchievedLengths]:
    """One entry per nominal length, ascending."""
    prompts = {(without_seed(r.item), r.question.prompt_sha256): r for r in task.records}
    by_length = group(prompts.values(), lambda record: record.seq_len)
    return [AchievedLengths(task, n, records) for n, records in sorted(by_length.items())]
