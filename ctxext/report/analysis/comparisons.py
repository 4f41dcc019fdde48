"""Two variants on the same questions: pairs, differences, and p-values of a family."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctxext.evals.power import detectable, effective_sample_size, least_p
from ctxext.evals.record import AnswerRecord
from ctxext.evals.stats import Z95, Interval, holm, rate_difference, sign_flip, student_t
from ctxext.report.analysis.pooling import without_seed
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
    num_texts: int
    """Texts that the pairs are about, whose signs the test flips."""

    def minimum_detectable(self, num_comparisons: int) -> float:
        """Percentage points detected with 80 % power, adjusted for the number of comparisons.

        Assumes that as large a share of pairs differs as does here, or as the difference takes; inf
        where no difference could be detected, as of a few texts.
        """
        discordant = (self.only_a + self.only_b) / self.n
        level = ALPHA / num_comparisons
        if least_p(self.num_texts) > level:
            return math.inf
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
    """Records of both for the same prompt; another tokenizer makes another prompt of an item.

    Where one side pools training seeds and the other had no training, every seed is a pair.
    """
    of_a = {record.item: record for record in a}
    of_b = {record.item: record for record in b}
    both = []
    for item in dict.fromkeys([*of_b, *of_a]):
        x = of_a.get(item) or of_a.get(without_seed(item))
        y = of_b.get(item) or of_b.get(without_seed(item))
        if x and y and x.question.prompt_sha256 == y.question.prompt_sha256:
            both.append((x, y))
    return both


def paired_points(both: Sequence[Pair]) -> Interval:
    """Percentage points of the second over the first, with a score interval.

    Pairs about one document count by their effective sample size, and with Student's t for the
    number of documents. Several pairs about one document alone give no bounds.
    """
    differences = _differences(both)
    of_documents = documents(x for x, _ in both)
    num_documents = len(set(of_documents))
    if num_documents == 1 < len(both):
        return Interval(100 * sum(differences) / len(both), None, None)
    estimates_correlation = num_documents < len(both) and len(set(differences)) > 1
    difference = rate_difference(
        differences.count(-1),
        differences.count(1),
        len(both),
        z=student_t(0.95, num_documents - 1) if estimates_correlation else Z95,
        effective_pairs=_effective_pairs(both),
    )
    return difference.scaled(100)


def _differences(both: Sequence[Pair]) -> list[int]:
    """1 where only the second is right, -1 where only the first is, else 0."""
    return [y.scores.correct - x.scores.correct for x, y in both]


def _effective_pairs(both: Sequence[Pair]) -> float:
    """The effective sample size: pairs about one document are not independent.

    If all pairs differ by the same, nothing shows how alike they are: each text counts as one.
    """
    differences = _differences(both)
    if len(set(differences)) == 1:
        return len({x.cluster.text for x, _ in both})
    return effective_sample_size(differences, documents(x for x, _ in both))


def compare(a: Variant, b: Variant, both: Sequence[Pair]) -> Comparison:
    """b against a over at least one pair; its p-value is not adjusted yet."""
    differences = _differences(both)
    texts = [x.cluster.text for x, _ in both]
    p = sign_flip(differences, texts)
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
        effective_n=_effective_pairs(both),
        num_texts=len(set(texts)),
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
