"""Recovery: what a needle in a long text still gives, as a share of what it gives alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ctxext.evals.record import EvalRecord, RecoveryRecord
from ctxext.evals.stats import Interval, fieller_interval, ratio_difference, ratio_interval
from ctxext.report.analysis.records import Variant, documents, group, is_base_of, labels

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

    @cached_property
    def lowest_depth(self) -> "Recovered | None":
        """The recovery at the depth where it is lowest; None at a single depth, and without any."""
        by_depth = group(self.records, lambda record: record.question.depth)
        found = [Recovered(self.variant, records) for records in by_depth.values()]
        values = [result.recovery.value for result in found if result.recovery]
        if len(values) < max(2, len(found)):
            return None
        return found[values.index(min(values))]

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


@dataclass(frozen=True, eq=False)
class RecoveryDifference:
    """The recovery of a variant minus that of another, on the same questions."""

    a: Recovered
    b: Recovered
    difference: Interval
    """Over documents."""

    @property
    def num_documents(self) -> int:
        return len(set(documents(self.b.records)))


def recovery_differences(entries: Sequence[Recovered]) -> list[RecoveryDifference]:
    """Every variant with a method against its base (`is_base_of`) at the longest length of both."""
    differences = []
    by_variant = group(entries, lambda entry: entry.variant)
    for variant, own in by_variant.items():
        bases = [base for base in by_variant if is_base_of(base.model, variant.model)]
        if len(bases) != 1:
            continue
        of_base = {entry.seq_len: entry for entry in by_variant[bases[0]]}
        common = [entry for entry in own if entry.seq_len in of_base]
        if not common:
            continue
        longest = max(common, key=lambda entry: entry.seq_len)
        if found := _difference(of_base[longest.seq_len], longest):
            differences.append(found)
    return differences


def _difference(a: Recovered, b: Recovered) -> RecoveryDifference | None:
    """b minus a of the prompts that both were asked; None without any, or a number of either."""
    of_a = {(record.item, record.question.prompt_sha256): record for record in a.records}
    pairs = [
        (of_a[key], record)
        for record in b.records
        if (key := (record.item, record.question.prompt_sha256)) in of_a
    ]
    if not pairs:
        return None
    only_a = Recovered(a.variant, [x for x, _ in pairs])
    only_b = Recovered(b.variant, [y for _, y in pairs])
    if not (only_a.uses_needle_alone and only_b.uses_needle_alone):
        return None
    difference = ratio_difference(
        (only_a.gained, only_a.gained_alone),
        (only_b.gained, only_b.gained_alone),
        documents(only_b.records),
    )
    return RecoveryDifference(only_a, only_b, difference)


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
