"""Perplexity, and the loss by position, of each variant and length."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ctxext.evals.record import EvalRecord, LossRecord, PositionLosses
from ctxext.evals.stats import Interval, ratio_interval
from ctxext.report.analysis.records import Variant, documents, group, labels


def losses(records: Iterable[EvalRecord]) -> list[LossRecord]:
    """The records of texts among all."""
    return [record for record in records if isinstance(record, LossRecord)]


@dataclass(frozen=True, eq=False)
class Perplexity:
    """exp of the mean loss of one variant at one length, over tokens or windows by estimator."""

    variant: Variant
    records: Sequence[LossRecord]

    @property
    def seq_len(self) -> int:
        return self.records[0].seq_len

    @property
    def count(self) -> int:
        """Tokens that were scored."""
        return sum(record.scores.count for record in self._scored)

    @property
    def num_documents(self) -> int:
        return len(set(documents(self._scored)))

    @cached_property
    def nll(self) -> Interval | None:
        """Mean nats per token, a t interval over documents; None where no token was scored."""
        if not self._scored:
            return None
        sums = [_sums(record) for record in self._scored]
        mean = ratio_interval(
            [total for total, _ in sums], [n for _, n in sums], documents(self._scored)
        )
        return mean.clipped(0)

    @property
    def perplexity(self) -> Interval | None:
        if self.nll is None:
            return None
        value, low, high = self.nll
        return Interval(
            math.exp(value),
            None if low is None else math.exp(low),
            None if high is None else math.exp(high),
        )

    @property
    def bits_per_byte(self) -> float | None:
        """The mean in bits, times tokens per byte of text."""
        if self.nll is None:
            return None
        num_bytes = sum(record.scores.num_bytes for record in self._scored)
        return self.nll.value / math.log(2) * self.count / num_bytes

    @cached_property
    def _scored(self) -> list[LossRecord]:
        return [record for record in self.records if record.scores.count]

    def to_json(self) -> dict[str, Any]:
        value, low, high = self.perplexity or (None, None, None)
        return {
            **labels(self.records[0]),
            "perplexity": value,
            "low": low,
            "high": high,
            "nats_per_token": None if self.nll is None else self.nll.value,
            "bits_per_byte": self.bits_per_byte,
            "count": self.count,
            "documents": self.num_documents,
        }


def _sums(record: LossRecord) -> tuple[float, int]:
    """Numerator and denominator of a record's part of the mean."""
    windows = record.scores.windows
    if record.estimator.mean == "token" or windows is None:
        return record.scores.nll, record.scores.count
    means = [nll / n for nll, n in zip(windows.nll, windows.count, strict=True)]
    return sum(means), len(means)


def perplexities(records: Sequence[LossRecord], variants: Sequence[Variant]) -> list[Perplexity]:
    """One entry per settings, variant and length, in order of appearance."""
    by_model = {variant.model: variant for variant in variants}
    cells = group(records, lambda record: (record.settings, record.model, record.seq_len))
    return [Perplexity(by_model[model], cell) for (_, model, _), cell in cells.items()]


@dataclass(frozen=True, eq=False)
class PositionCurve:
    """Nats per token of one variant, in bins of the number of tokens seen before."""

    variant: Variant
    records: Sequence[LossRecord]
    edges: tuple[int, ...]
    nll: list[Interval]
    """Means by bin, with t intervals over documents."""
    counts: list[int]

    @property
    def seq_len(self) -> int:
        return self.records[0].seq_len

    @property
    def bins(self) -> list[tuple[int, int]]:
        """(first, last) number of tokens seen before."""
        return [(a, b - 1) for a, b in zip(self.edges, self.edges[1:], strict=False)]

    def to_json(self) -> dict[str, Any]:
        return {
            **labels(self.records[0]),
            "edges": list(self.edges),
            "nll": [x.value for x in self.nll],
            "count": self.counts,
            "low": [x.low for x in self.nll],
            "high": [x.high for x in self.nll],
        }


def position_curves(
    records: Sequence[LossRecord], variants: Sequence[Variant]
) -> list[PositionCurve]:
    """One entry per settings, variant and length of the records that have losses by position."""
    by_model = {variant.model: variant for variant in variants}
    binned = [record for record in records if record.scores.by_position]
    cells = group(binned, lambda record: (record.settings, record.model, record.seq_len))
    return [_position_curve(by_model[model], cell) for (_, model, _), cell in cells.items()]


def _position_curve(variant: Variant, records: Sequence[LossRecord]) -> PositionCurve:
    bins: list[PositionLosses] = [r.scores.by_position for r in records if r.scores.by_position]
    sums_by_bin = zip(*(b.nll for b in bins), strict=True)
    counts_by_bin = list(zip(*(b.count for b in bins), strict=True))
    nll = [
        ratio_interval(sums, counts, documents(records)).clipped(0)
        for sums, counts in zip(sums_by_bin, counts_by_bin, strict=True)
    ]
    return PositionCurve(variant, records, bins[0].edges, nll, [sum(n) for n in counts_by_bin])
