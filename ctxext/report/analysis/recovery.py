"""Recovery: what a needle in a long text still gives, as a share of what it gives alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ctxext.evals.record import EvalRecord, RecoveryRecord
from ctxext.evals.stats import Interval, fieller_interval, ratio_interval
from ctxext.report.analysis.records import Variant, documents, group, labels

GATE = 0.80
"""A length passes if the lower end of the 95 % interval of its recovery is at least this."""


@dataclass(frozen=True, eq=False)
class Recovered:
    """The recovery of one variant over some questions of one length."""

    variant: Variant
    records: Sequence[RecoveryRecord]

    @property
    def seq_len(self) -> int:
        return self.records[0].seq_len

    @property
    def task(self) -> str:
        return self.records[0].question.task

    @property
    def depth(self) -> float:
        return self.records[0].question.depth or 0.0

    @property
    def num_texts(self) -> int:
        return len({record.cluster.text for record in self.records})

    @cached_property
    def gained(self) -> list[float]:
        """Nats by which the needle in the text makes each answer likelier than without it."""
        return [record.scores.nll_without - record.scores.nll for record in self.records]

    @cached_property
    def gained_alone(self) -> list[float]:
        """The same for the needle alone."""
        return [record.scores.nll_without - record.scores.nll_alone for record in self.records]

    @cached_property
    def alone(self) -> Interval:
        """The mean of what the needle alone gives, nats per answer, a t interval over documents."""
        ones = [1] * len(self.records)
        return ratio_interval(self.gained_alone, ones, documents(self.records))

    @property
    def uses_needle_alone(self) -> bool:
        """Whether a needle alone makes its answer likelier; if not, there is nothing to recover."""
        return self.alone.value > 0 if self.alone.low is None else self.alone.low > 0

    @cached_property
    def recovery(self) -> Interval | None:
        """The ratio of the means with Fieller's interval over documents.

        None if the needle is not even used alone.
        """
        if not self.uses_needle_alone:
            return None
        return fieller_interval(self.gained, self.gained_alone, documents(self.records))

    @property
    def passes(self) -> bool:
        """Whether the lower end of the interval is at least `GATE`."""
        return bool(self.recovery and self.recovery.low is not None and self.recovery.low >= GATE)

    def to_json(self) -> dict[str, Any]:
        value, low, high = self.recovery or (None, None, None)
        depths = {record.question.depth for record in self.records}
        return {
            "task": self.task,
            **labels(self.records[0]),
            "depth": self.depth if len(depths) == 1 else None,
            "recovery": value,
            "low": low,
            "high": high,
            "gate": GATE,
            "passes": self.passes,
            "nats_alone": self.alone._asdict(),
            "n": len(self.records),
            "texts": self.num_texts,
        }


def recovered(
    records: Iterable[EvalRecord],
    variants: Sequence[Variant],
    key: Callable[[RecoveryRecord], Any],
) -> list[Recovered]:
    """One entry per settings, variant, length and `key`, in order of appearance."""
    by_model = {variant.model: variant for variant in variants}
    cells = group(
        (record for record in records if isinstance(record, RecoveryRecord)),
        lambda record: (record.settings, record.model, record.seq_len, key(record)),
    )
    return [Recovered(by_model[model], cell) for (_, model, _, _), cell in cells.items()]
