"""Context gain: how much less surprised a model is by the right answer when the text holds it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from ctxext.evals.record import AnswerRecord
from ctxext.evals.stats import Interval, ratio_interval
from ctxext.report.analysis.comparisons import Pair
from ctxext.report.analysis.records import TaskResults, Variant, documents, group

K = TypeVar("K")


@dataclass(frozen=True, eq=False)
class Gain:
    """Mean of nll(answer | no needle) - nll(answer | needle) over pairs, in nats per token."""

    task: TaskResults
    variant: Variant
    pairs: list[Pair]
    """The same question with its needle, and without."""

    @property
    def seq_len(self) -> int:
        return self.pairs[0][0].seq_len

    @property
    def depth(self) -> float:
        return self.pairs[0][0].question.depth or 0.0

    @property
    def n(self) -> int:
        return len(self.pairs)

    @cached_property
    def mean(self) -> Interval:
        """The mean with a t interval over documents."""
        gains = [
            without.scores.answer_nll - with_needle.scores.answer_nll
            for with_needle, without in self.pairs
        ]
        return ratio_interval(gains, [1] * self.n, documents(x for x, _ in self.pairs))

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task.task,
            "settings": self.task.settings,
            "checkpoint": self.variant.model.checkpoint,
            "method": self.variant.model.label,
            "seq_len": self.seq_len,
            "n": self.n,
            **self.mean._asdict(),
        }


def _by_length(record: AnswerRecord) -> int:
    return record.seq_len


def gains(
    task: TaskResults, key: Callable[[AnswerRecord], Any] = _by_length
) -> dict[Variant, list[Gain]]:
    """The gains of every variant that was asked without needles, one per `key` of the question."""
    with_needle = {(record.model, record.item): record for record in task.records}
    both: list[Pair] = []
    for control in task.controls:
        twin = with_needle.get((control.model, control.question.needle_item))
        if control.question.condition == "no-needle" and twin:
            both.append((twin, control))
    by_variant: dict[Variant, list[Gain]] = {}
    for variant in task.variants:
        own = [pair for pair in both if pair[0].model == variant.model]
        cells = group(own, lambda pair: key(pair[0])).values()
        if own:
            by_variant[variant] = [Gain(task, variant, cell) for cell in cells]
    return by_variant
