"""Two variants on the questions that both were asked: pairs, differences, and the family their p-values belong to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ctxext.evals.power import detectable, effective_sample_size
from ctxext.evals.stats import Interval, holm, paired_bootstrap, sign_flip, wilson
from ctxext.report.analysis.records import Row, Variant, document, text

ALPHA = 0.05
Pair = tuple[Row, Row]


@dataclass(frozen=True)
class Comparison:
    """b minus a: percentage `points` with a paired interval, exact `p` by texts, and Holm's `adjusted` in a family."""

    a: Variant
    b: Variant
    n: int
    right_a: int
    right_b: int
    only_a: int
    only_b: int
    points: Interval
    p: float
    adjusted: float
    independent: float
    """What the pairs are worth: how many that do not share documents."""

    def seen(self, total: int) -> float:
        """Percentage points that would have been shown with 80 % power, adjusted for `total` comparisons.

        That as many pairs differ as did here, or as many as that takes; inf if no difference could have been.
        """
        share = (self.only_a + self.only_b) / self.n
        return 100 * detectable(self.independent, discordant=share, level=ALPHA / total)

    @property
    def shown(self) -> bool:
        """Whether a difference is shown at the 5 % level, all comparisons of the family taken together."""
        return self.adjusted < ALPHA


def pairs(a: Iterable[Row], b: Iterable[Row]) -> list[Pair]:
    """Rows of both variants for the same prompt; with another tokenizer the same item is another prompt, and no pair."""
    there = {row["item"]: row for row in a}
    both = [(there[row["item"]], row) for row in b if row["item"] in there]
    return [(x, y) for x, y in both if x["prompt_sha256"] == y["prompt_sha256"]]


def paired(both: Sequence[Pair]) -> Interval:
    """Percentage points of the second over the first; clusters are the haystack documents."""
    a, b = ([100 * row["correct"] for row in side] for side in zip(*both, strict=True))
    differences = {y - x for x, y in zip(a, b, strict=True)}
    if (
        len(differences) == 1
    ):  # a bootstrap of equal pairs would be certain; what n of them leave open is 0 of n
        (value,), open_ = differences, 100 * (wilson(0, len(a)).high or 0)
        return Interval(float(value), max(-100.0, value - open_), min(100.0, value + open_))
    return paired_bootstrap(a, b, [document(row) for row, _ in both])


def compare(a: Variant, b: Variant, both: Sequence[Pair]) -> Comparison:
    """b against a over pairs, at least one; not yet adjusted."""
    only_a = sum(x["correct"] and not y["correct"] for x, y in both)
    only_b = sum(y["correct"] and not x["correct"] for x, y in both)
    right_a, right_b = sum(x["correct"] for x, _ in both), sum(y["correct"] for _, y in both)
    differences = [y["correct"] - x["correct"] for x, y in both]
    p = sign_flip(differences, [text(row) for row, _ in both])
    worth = effective_sample_size(differences, [document(row) for row, _ in both])
    return Comparison(a, b, len(both), right_a, right_b, only_a, only_b, paired(both), p, p, worth)


def family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same with p-values adjusted for each other."""
    adjusted = holm([c.p for c in comparisons])
    return [replace(c, adjusted=p) for c, p in zip(comparisons, adjusted, strict=True)]


def flipped(c: Comparison) -> Comparison:
    """The same comparison seen from the other side."""
    low, high = (None if x is None else -x for x in (c.points.high, c.points.low))
    return Comparison(
        c.b,
        c.a,
        c.n,
        c.right_b,
        c.right_a,
        c.only_b,
        c.only_a,
        Interval(-c.points.value, low, high),
        c.p,
        c.adjusted,
        c.independent,
    )
