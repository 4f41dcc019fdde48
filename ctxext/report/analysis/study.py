"""One retrieval task analysed: how far every arm reaches, which arm is best, and the comparisons that were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ctxext.evals.stats import Effective, effective_length
from ctxext.report.analysis.comparisons import Comparison, compare, family, flipped, pairs
from ctxext.report.analysis.records import Arm, Question, Row, document

TAU = 0.85
"""The bar of the effective context, as a part of the base's own score at home."""


@dataclass(frozen=True)
class Home:
    """The base as it is, at its own window: what the bar is a part of."""

    arm: Arm
    rows: list[Row]

    @property
    def right(self) -> int:
        return sum(row["correct"] for row in self.rows)


@dataclass(frozen=True, eq=False)
class Study:
    """A question with what follows from it, each computed once."""

    question: Question

    @cached_property
    def homes(self) -> list[Home]:
        """Every base in the rows: neither scaled nor trained, asked at its window."""
        bases = [arm for arm in self.question.arms if arm.plain and arm.steps == 0]
        return [Home(arm, rows) for arm in bases if (rows := self.question.of(arm, arm.window))]

    def home(self, arm: Arm) -> Home | None:
        """The base an arm is held against: of its own run, else the only one; None without one that ever answers."""
        there = [home for home in self.homes if home.right and home.arm.window == arm.window]
        own = [home for home in there if home.arm.series[0] == arm.series[0]]
        return own[0] if own else there[0] if len(there) == 1 else None

    @cached_property
    def reaches(self) -> dict[Arm, Effective]:
        """The effective context in tokens of every arm with a base at home and more than one length."""
        return {arm: far for arm in self.question.arms if (far := self.effective(arm, TAU))}

    def effective(self, arm: Arm, tau: float) -> Effective | None:
        """Up to where an arm keeps `tau` of the base at home; None without that, or with a single length."""
        home, rows = self.home(arm), self.question.of(arm)
        if home is None or len({row["seq_len"] for row in rows}) < 2:
            return None
        return _effective(
            tau,
            tuple(row["seq_len"] for row in rows),
            tuple(row["correct"] for row in rows),
            tuple(map(document, rows)),
            tuple(r["correct"] for r in home.rows),
            tuple(map(document, home.rows)),
        )

    @cached_property
    def trained(self) -> list[Arm]:
        """Trained arms that were asked at the longest length, the best first: by rate there, then by reach."""
        asked = [
            arm
            for arm in self.question.arms
            if arm.trained and self.question.of(arm, self.question.longest)
        ]
        return sorted(asked, key=self._merit, reverse=True)

    def _merit(self, arm: Arm) -> tuple[float, float]:
        rows, far = self.question.of(arm, self.question.longest), self.reaches.get(arm)
        return sum(row["correct"] for row in rows) / len(rows), far.value if far else 0.0

    @cached_property
    def best(self) -> Arm | None:
        """The best trained arm whose method changes something."""
        return next((arm for arm in self.trained if not arm.plain), None)

    def unscaled(self, arm: Arm) -> Arm | None:
        """The same training without any method, of the same run if there are several."""
        same = [x for x in self.trained if x.plain and x.steps == arm.steps and x != arm]
        return next(
            (x for x in same if x.series[0] == arm.series[0]), same[0] if len(same) == 1 else None
        )

    def zero_shot(self, arm: Arm) -> Arm | None:
        """The same method without training."""
        same = [
            x
            for x in self.question.arms
            if x.steps == 0 and (x.what, x.rope) == (arm.what, arm.rope)
        ]
        return next(
            (x for x in same if x.series[0] == arm.series[0]), same[0] if len(same) == 1 else None
        )

    def comparisons(self) -> list[Comparison]:
        """At the longest length: each trained arm against its unscaled and zero-shot twins and against the best."""
        wanted: dict[frozenset[Arm], tuple[Arm, Arm]] = {}
        for arm in self.trained:
            for other in (self.unscaled(arm), self.zero_shot(arm), self.best):
                if other is not None and other != arm:
                    wanted.setdefault(frozenset((arm, other)), (other, arm))
        both = {
            key: pairs(*(self.question.of(arm, self.question.longest) for arm in key))
            for key in wanted.values()
        }
        return [compare(a, b, rows) for (a, b), rows in both.items() if rows]


@lru_cache(maxsize=1024)
def _effective(tau: float, *data: tuple[Any, ...]) -> Effective:
    """Kept, as the verdict, the tables and the page of the same rows all ask for it."""
    return effective_length(*data, tau=tau)


def adjusted(studies: Sequence[Study]) -> list[list[Comparison]]:
    """The comparisons of each study; p-values adjusted over all of them together."""
    each = [study.comparisons() for study in studies]
    flat = iter(family([c for found in each for c in found]))
    return [[next(flat) for _ in found] for found in each]


def between(made: Sequence[Comparison], a: Arm | None, b: Arm | None) -> Comparison | None:
    """b against a among the comparisons made, or None."""
    for c in made:
        if (c.a, c.b) == (a, b):
            return c
        if (c.a, c.b) == (b, a):
            return flipped(c)
    return None
