"""Two variants on the same questions: pairs, differences, and p-values of a family."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctxext.evals.power import detectable, effective_sample_size
from ctxext.evals.record import AnswerRecord
from ctxext.evals.stats import Interval, holm, paired_bootstrap, sign_flip, wilson
from ctxext.report.analysis.records import TaskResults, Variant, documents, group, num_correct

ALPHA = 0.05
"""Level of significance, all comparisons of a family taken together."""
Pair = tuple[AnswerRecord, AnswerRecord]


@dataclass(frozen=True)
class Comparison:
    """b minus a on the same questions."""

    a: Variant
    b: Variant
    n: int
    """Pairs."""
    correct_a: int
    correct_b: int
    only_a: int
    """Pairs of which only a is right."""
    only_b: int
    points: Interval
    """Percentage points, with a paired interval over documents."""
    p: float
    """Exact p-value of a sign-flip test over texts."""
    adjusted_p: float
    """The same after Holm's adjustment within a family."""
    effective_n: float
    """Effective sample size: pairs about one document are not independent."""

    def minimum_detectable(self, num_comparisons: int) -> float:
        """Percentage points detected with 80 % power, adjusted for the number of comparisons.

        Assumes that as large a share of pairs differs as does here, or as the difference takes; inf
        where no difference could be detected.
        """
        discordant = (self.only_a + self.only_b) / self.n
        level = ALPHA / num_comparisons
        return 100 * detectable(self.effective_n, discordant=discordant, level=level)

    @property
    def significant(self) -> bool:
        return self.adjusted_p < ALPHA

    @property
    def reversed(self) -> "Comparison":
        """a minus b."""
        value, low, high = self.points
        opposite = Interval(-value, None if high is None else -high, None if low is None else -low)
        return replace(
            self,
            a=self.b,
            b=self.a,
            correct_a=self.correct_b,
            correct_b=self.correct_a,
            only_a=self.only_b,
            only_b=self.only_a,
            points=opposite,
        )


def pairs(a: Iterable[AnswerRecord], b: Iterable[AnswerRecord]) -> list[Pair]:
    """Records of both for the same prompt; another tokenizer makes another prompt of an item."""
    by_item = {record.item: record for record in a}
    both = [(by_item[record.item], record) for record in b if record.item in by_item]
    return [(x, y) for x, y in both if x.question.prompt_sha256 == y.question.prompt_sha256]


def paired_points(both: Sequence[Pair]) -> Interval:
    """Percentage points of the second over the first, with a bootstrap over documents."""
    a = [100 * x.scores.correct for x, _ in both]
    b = [100 * y.scores.correct for _, y in both]
    differences = {y - x for x, y in zip(a, b, strict=True)}
    if len(differences) > 1:
        return paired_bootstrap(a, b, documents(x for x, _ in both))
    # A bootstrap of equal differences would claim certainty; they leave open as much as 0 of n.
    (value,) = differences
    margin = 100 * (wilson(0, len(a)).high or 0)
    return Interval(float(value), max(-100.0, value - margin), min(100.0, value + margin))


def compare(a: Variant, b: Variant, both: Sequence[Pair]) -> Comparison:
    """b against a over at least one pair; its p-value is not adjusted yet."""
    differences = [y.scores.correct - x.scores.correct for x, y in both]
    p = sign_flip(differences, [x.cluster.text for x, _ in both])
    return Comparison(
        a,
        b,
        n=len(both),
        correct_a=num_correct(x for x, _ in both),
        correct_b=num_correct(y for _, y in both),
        only_a=differences.count(-1),
        only_b=differences.count(1),
        points=paired_points(both),
        p=p,
        adjusted_p=p,
        effective_n=effective_sample_size(differences, documents(x for x, _ in both)),
    )


def as_family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with p-values adjusted for each other."""
    adjusted = holm([c.p for c in comparisons])
    return [replace(c, adjusted_p=p) for c, p in zip(comparisons, adjusted, strict=True)]


@dataclass(frozen=True)
class Difference:
    """Percentage points of a variant over the first one at one length."""

    variant: Variant
    seq_len: int
    points: Interval

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoint": self.variant.model.checkpoint,
            "method": self.variant.model.label,
            "seq_len": self.seq_len,
            **self.points._asdict(),
        }


def differences_to_first(task: TaskResults) -> list[Difference]:
    """Every other variant against the first, by length, on the questions that both were asked."""
    first, *others = task.variants
    return [
        Difference(variant, seq_len, paired_points(both))
        for variant in others
        for seq_len, both in group(
            pairs(task.select(first), task.select(variant)), lambda pair: pair[1].seq_len
        ).items()
    ]
