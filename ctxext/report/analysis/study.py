"""One task analysed: the effective context of every variant, the best one, and comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ctxext.evals.record import AnswerRecord
from ctxext.evals.stats import EffectiveLength, effective_length
from ctxext.report.analysis.comparisons import Comparison, as_family, compare, pairs
from ctxext.report.analysis.records import TaskResults, Variant, documents, num_correct, seq_lens
from ctxext.report.analysis.scores import Scores, scores

THRESHOLD = 0.85
"""Share of the in-window baseline down to which a length counts as effective context."""


@dataclass(frozen=True)
class Baseline:
    """The in-window baseline: a base model as it is, not trained, at its own window."""

    variant: Variant
    records: list[AnswerRecord]

    @property
    def correct(self) -> int:
        return num_correct(self.records)

    @property
    def is_weak(self) -> bool:
        """Fewer than half of the answers are right: a share of so few shows nothing about length.

        A model that answers one question in five at its window may keep that at any length by
        what it finds near the end of a text.
        """
        return 2 * self.correct < len(self.records)

    @property
    def text(self) -> str:
        """Such as: 59/60 at the window of 256 tokens."""
        window = self.variant.window
        return f"{self.correct}/{len(self.records)} at the window of {window:,} tokens"


@dataclass(frozen=True, eq=False)
class Study:
    """A task with what follows from its records, each computed once."""

    task: TaskResults

    @cached_property
    def scores(self) -> list[Scores]:
        """The answers to the questions by variant and length."""
        return scores(self.task.records, self.task.variants)

    @cached_property
    def control_scores(self) -> list[Scores]:
        """The answers to the controls by variant, length and condition."""
        return scores(self.task.controls, self.task.variants)

    @cached_property
    def baselines(self) -> list[Baseline]:
        """The in-window baseline of every base model among the variants."""
        bases = [v for v in self.task.variants if v.model.is_plain and not v.trained]
        baselines = [Baseline(base, self.task.select(base, base.window)) for base in bases]
        return [baseline for baseline in baselines if baseline.records]

    def baseline(self, variant: Variant) -> Baseline | None:
        """The baseline that a variant is compared with: of the same checkpoint, else the only one.

        It may have no right answers. None if no base of the same window was asked.
        """
        asked = [b for b in self.baselines if b.variant.window == variant.window]
        base = _preferred([b.variant for b in asked], variant)
        return next((b for b in asked if b.variant == base), None)

    @cached_property
    def effective(self) -> dict[Variant, EffectiveLength]:
        """The effective context length in tokens of every variant that has one."""
        lengths = {v: self.effective_context(v, THRESHOLD) for v in self.task.variants}
        return {variant: length for variant, length in lengths.items() if length}

    def effective_context(self, variant: Variant, threshold: float) -> EffectiveLength | None:
        """The length up to which a variant keeps `threshold` of the in-window baseline.

        None without a baseline of which half is right, or where the variant was asked at a single
        length.
        """
        baseline = self.baseline(variant)
        records = self.task.select(variant)
        if baseline is None or baseline.is_weak or len(seq_lens(records)) < 2:
            return None
        return _effective_length(
            threshold,
            tuple(record.seq_len for record in records),
            tuple(record.scores.correct for record in records),
            tuple(documents(records)),
            tuple(record.scores.correct for record in baseline.records),
            tuple(documents(baseline.records)),
        )

    @cached_property
    def trained(self) -> list[Variant]:
        """Trained variants that were asked at the longest length, the best first.

        By accuracy there, then by effective context.
        """
        trained = [v for v in self.task.variants if v.trained and self._at_longest(v)]
        return sorted(trained, key=self._merit, reverse=True)

    def _at_longest(self, variant: Variant) -> list[AnswerRecord]:
        return self.task.select(variant, self.task.longest)

    def _merit(self, variant: Variant) -> tuple[float, float]:
        records = self._at_longest(variant)
        length = self.effective.get(variant)
        return num_correct(records) / len(records), length.value if length else 0.0

    @cached_property
    def best(self) -> Variant | None:
        """The best trained variant with a method that changes something."""
        return next((v for v in self.trained if not v.model.is_plain), None)

    @cached_property
    def best_untrained(self) -> Variant | None:
        """The best untrained variant with a method that changes something; without any, a base."""
        untrained = [v for v in self.task.variants if not v.trained and self._at_longest(v)]
        untrained.sort(key=self._merit, reverse=True)
        with_method = [v for v in untrained if not v.model.is_plain]
        return next(iter([*with_method, *untrained]), None)

    def unscaled(self, variant: Variant) -> Variant | None:
        """The variant that was trained as long without a method, see `_preferred`.

        None for weights that are run with another method than they were trained with, and for an
        adapter, whose training is not known.
        """
        if not _is_trained_as_it_is_run(variant):
            return None
        same = [
            v
            for v in self.trained
            if v.model.is_plain
            and v.model.steps == variant.model.steps
            and _is_trained_as_it_is_run(v)
            and v != variant
        ]
        return _preferred(same, variant)

    def zero_shot(self, variant: Variant) -> Variant | None:
        """The variant with the same method and no training, see `_preferred`."""
        same = [
            v
            for v in self.task.variants
            if not v.trained and v.model.method == variant.model.method
        ]
        return _preferred(same, variant)

    @cached_property
    def zero_shot_methods(self) -> list[Variant]:
        """Untrained variants with a method that were asked at the longest length.

        Empty where trained ones were asked there too, whose comparisons are about training.
        """
        if self.trained:
            return []
        return [v for v in self.task.variants if not v.model.is_plain and self._at_longest(v)]

    def base_of(self, variant: Variant) -> Variant | None:
        """The same weights as they are, asked at the longest length; None if they were not."""
        model = variant.model
        bases = [
            v
            for v in self.task.variants
            if v.is_base
            and (v.model.checkpoint, v.model.weights) == (model.checkpoint, model.weights)
            and self._at_longest(v)
        ]
        return _preferred(bases, variant)

    @property
    def control_variant(self) -> Variant | None:
        """The variant whose controls represent all: the best, else the first that was asked any."""
        with_controls = {record.model for record in self.task.controls}
        in_order = [self.best, self.best_untrained, *self.task.variants]
        return next((v for v in in_order if v and v.model in with_controls), None)

    def comparisons(self) -> list[Comparison]:
        """Trained variants against no method, against zero-shot and against the best.

        Without any trained variant, methods against the base as it is. At the longest length, each
        pair once; p-values are not adjusted yet.
        """
        contrasts: dict[frozenset[Variant], tuple[Variant, Variant]] = {}
        for variant in self.trained:
            for other in (self.unscaled(variant), self.zero_shot(variant), self.best):
                if other is not None and other != variant:
                    contrasts.setdefault(frozenset((variant, other)), (other, variant))
        for variant in self.zero_shot_methods:
            if (base := self.base_of(variant)) is not None:
                contrasts[frozenset((variant, base))] = base, variant
        comparisons = []
        for a, b in contrasts.values():
            if both := pairs(self._at_longest(a), self._at_longest(b)):
                comparisons.append(compare(a, b, both))
        return comparisons


def _is_trained_as_it_is_run(variant: Variant) -> bool:
    return not variant.model.trained_with and not variant.model.adapter


def _preferred(candidates: Sequence[Variant], variant: Variant) -> Variant | None:
    """The candidate of the same checkpoint, in the same number type if there is one; else the only
    one.

    Training changes the weights, so that only what was not trained must have the same checksum.
    """
    model = variant.model
    of_checkpoint = [
        c
        for c in candidates
        if c.model.checkpoint == model.checkpoint
        and (variant.trained or c.model.weights == model.weights)
    ]
    if of_checkpoint:
        return max(of_checkpoint, key=lambda c: c.model.dtype == model.dtype)
    return candidates[0] if len(candidates) == 1 else None


@lru_cache(maxsize=1024)
def _effective_length(threshold: float, *data: tuple[Any, ...]) -> EffectiveLength:
    """Cached, as the verdict, the tables and the page of the same records all ask for it."""
    return effective_length(*data, tau=threshold)


def adjusted_comparisons(studies: Sequence[Study]) -> list[list[Comparison]]:
    """The comparisons of each study, p-values adjusted over all of them together."""
    by_study = [study.comparisons() for study in studies]
    adjusted = iter(as_family([c for comparisons in by_study for c in comparisons]))
    return [[next(adjusted) for _ in comparisons] for comparisons in by_study]


def find_comparison(
    comparisons: Sequence[Comparison], a: Variant | None, b: Variant | None
) -> Comparison | None:
    """b against a among the comparisons, or None."""
    for comparison in comparisons:
        if (comparison.a, comparison.b) == (a, b):
            return comparison
        if (comparison.a, comparison.b) == (b, a):
            return comparison.reversed
    return None
