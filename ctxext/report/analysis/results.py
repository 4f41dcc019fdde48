"""Everything that follows from a set of evaluation records, each part computed once."""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from ctxext.evals.record import (
    AnswerRecord,
    EvalRecord,
    LossRecord,
    RecoveryRecord,
    distinct_titles,
)
from ctxext.report.analysis.comparisons import Comparison
from ctxext.report.analysis.growing_window import BookLosses, book_losses
from ctxext.report.analysis.perplexity import losses
from ctxext.report.analysis.records import (
    Variant,
    answers,
    group,
    is_control,
    latest,
    task_results,
    variants,
)
from ctxext.report.analysis.recovery import Recovered, recovered
from ctxext.report.analysis.study import Study, adjusted_comparisons
from ctxext.report.analysis.suites import SuiteMean, suite_means


class Results:
    """The results of records; of several for one model and item, the newest counts."""

    def __init__(self, records: Iterable[EvalRecord]) -> None:
        self.records = latest(records)

    @cached_property
    def variants(self) -> list[Variant]:
        """Every model among the records, in order of appearance."""
        return variants(self.records)

    @cached_property
    def studies(self) -> list[Study]:
        """Every retrieval task, analysed."""
        return [Study(task) for task in task_results(self.records)]

    @cached_property
    def comparisons(self) -> list[list[Comparison]]:
        """Of each study; p-values are adjusted over all of them together."""
        return adjusted_comparisons(self.studies)

    @cached_property
    def unmatched_controls(self) -> list[AnswerRecord]:
        """Controls of questions that were not asked themselves."""
        matched = {(r.model, r.item) for study in self.studies for r in study.task.controls}
        controls = filter(is_control, answers(self.records))
        return [record for record in controls if (record.model, record.item) not in matched]

    @cached_property
    def suites(self) -> dict[str, list[SuiteMean]]:
        """The means over tasks, by suite."""
        return group(suite_means(self.records, self.variants), lambda mean: mean.suite)

    @cached_property
    def loss_details(self) -> dict[str, str]:
        """The settings that differ between losses of one estimator; empty if none do."""
        records = [of_settings[0] for of_settings in self.losses]
        names = distinct_titles(records, lambda record: record.estimator.name)
        return {r.settings: names[r.settings].removeprefix(r.estimator.name) for r in records}

    @cached_property
    def books(self) -> list[list[BookLosses]]:
        """The losses of whole books by position, by settings; a variant each."""
        entries = [book_losses(records, self.variants) for records in self.losses]
        return [of_settings for of_settings in entries if of_settings]

    @cached_property
    def recovery(self) -> list[list[Recovered]]:
        """Recovery by settings; a variant and a length each."""
        return self._recovered(lambda record: None)

    @cached_property
    def recovery_by_depth(self) -> list[list[Recovered]]:
        """The same at each depth."""
        return self._recovered(lambda record: record.question.depth)

    def _recovered(self, key: Callable[[RecoveryRecord], Any]) -> list[list[Recovered]]:
        entries = recovered(self.records, self.variants, key)
        return list(group(entries, lambda entry: entry.records[0].settings).values())

    @cached_property
    def losses(self) -> list[list[LossRecord]]:
        """The losses on texts by settings, which keeps different estimators apart."""
        return list(group(losses(self.records), lambda record: record.settings).values())
