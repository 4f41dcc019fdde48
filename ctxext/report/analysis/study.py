"""One retrieval task analysed: how far every variant reaches, which variant is best, and the comparisons that were made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ctxext.evals.stats import Effective, effective_length
from ctxext.report.analysis.comparisons import Comparison, compare, family, flipped, pairs
from ctxext.report.analysis.records import Question, Row, Variant, document

TAU = 0.85
"""The bar of the effective context, as a part of the base's own score at home."""


@dataclass(frozen=True)
class Home:
    """The base as it is, at its own window: what the bar is a part of."""

    variant: Variant
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
        bases = [
            variant for variant in self.question.variants if variant.plain and variant.steps == 0
        ]
        return [
            Home(variant, rows)
            for variant in bases
            if (rows := self.question.of(variant, variant.window))
        ]

    def home(self, variant: Variant) -> Home | None:
        """The base an variant is held against: of its own run, else the only one; None without one that ever answers."""
        there = [
            home for home in self.homes if home.right and home.variant.window == variant.window
        ]
        own = [home for home in there if home.variant.series[0] == variant.series[0]]
        return own[0] if own else there[0] if len(there) == 1 else None

    @cached_property
    def reaches(self) -> dict[Variant, Effective]:
        """The effective context in tokens of every variant with a base at home and more than one length."""
        return {
            variant: far
            for variant in self.question.variants
            if (far := self.effective(variant, TAU))
        }

    def effective(self, variant: Variant, tau: float) -> Effective | None:
        """Up to where an variant keeps `tau` of the base at home; None without that, or with a single length."""
        home, rows = self.home(variant), self.question.of(variant)
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
    def trained(self) -> list[Variant]:
        """Trained variants that were asked at the longest length, the best first: by rate there, then by reach."""
        asked = [
            variant
            for variant in self.question.variants
            if variant.trained and self.question.of(variant, self.question.longest)
        ]
        return sorted(asked, key=self._merit, reverse=True)

    def _merit(self, variant: Variant) -> tuple[float, float]:
        rows, far = self.question.of(variant, self.question.longest), self.reaches.get(variant)
        return sum(row["correct"] for row in rows) / len(rows), far.value if far else 0.0

    @cached_property
    def best(self) -> Variant | None:
        """The best trained variant whose method changes something."""
        return next((variant for variant in self.trained if not variant.plain), None)

    def unscaled(self, variant: Variant) -> Variant | None:
        """The same training without any method, of the same run if there are several."""
        same = [x for x in self.trained if x.plain and x.steps == variant.steps and x != variant]
        return next(
            (x for x in same if x.series[0] == variant.series[0]),
            same[0] if len(same) == 1 else None,
        )

    def zero_shot(self, variant: Variant) -> Variant | None:
        """The same method without training."""
        same = [
            x
            for x in self.question.variants
            if x.steps == 0 and (x.what, x.rope) == (variant.what, variant.rope)
        ]
        return next(
            (x for x in same if x.series[0] == variant.series[0]),
            same[0] if len(same) == 1 else None,
        )

    def comparisons(self) -> list[Comparison]:
        """At the longest length: each trained variant against its unscaled and zero-shot twins and against the best."""
        wanted: dict[frozenset[Variant], tuple[Variant, Variant]] = {}
        for variant in self.trained:
            for other in (self.unscaled(variant), self.zero_shot(variant), self.best):
                if other is not None and other != variant:
                    wanted.setdefault(frozenset((variant, other)), (other, variant))
        both = {
            key: pairs(*(self.question.of(variant, self.question.longest) for variant in key))
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


def between(made: Sequence[Comparison], a: Variant | None, b: Variant | None) -> Comparison | None:
    """b against a among the comparisons made, or None."""
    for c in made:
        if (c.a, c.b) == (a, b):
            return c
        if (c.a, c.b) == (b, a):
            return flipped(c)
    return None
