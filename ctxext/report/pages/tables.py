"""The result tables. Text, JSON and the page are renderings of what is made here."""

from typing import Any

from ctxext.evals.growing_window import GrowingWindow
from ctxext.report.analysis.effective_context import effective_contexts
from ctxext.report.analysis.growing_window import differences_to_first
from ctxext.report.analysis.perplexity import position_curves
from ctxext.report.analysis.results import Results
from ctxext.report.analysis.study import Study
from ctxext.report.pages.answer_tables import (
    accuracy_table,
    controls_table,
    differences_table,
    gain_table,
    lengths_table,
    measure_table,
    mistakes_table,
    samples_table,
    seeds_table,
    unmatched_controls_table,
)
from ctxext.report.pages.context_tables import effective_context_table, thresholds_table
from ctxext.report.pages.growing_window import book_differences_table, growing_window_table
from ctxext.report.pages.loss_tables import perplexity_table, position_table
from ctxext.report.pages.measures import MEASURES
from ctxext.report.pages.overview_tables import overview_tables, suite_table
from ctxext.report.pages.recovery import recovery_depth_table, recovery_table
from ctxext.report.table import Table

KINDS_OF_TABLES = (
    "effective",
    "retrieval",
    "controls",
    "differences",
    "gain",
    "mistakes",
    "lengths",
    "suites",
    "perplexity",
    "by_position",
    "growing_window",
    "growing_window_differences",
    "recovery",
    "recovery_by_depth",
)
"""The keys of tables in JSON."""
ANSWERS = ("effective", "retrieval", "suites", "perplexity", "growing_window", "recovery")
"""The keys of tables that answer what was asked; the others say how sure that is, and why."""


def all_tables(results: Results) -> list[Table[Any]]:
    """Every table in the order of reading: those with answers, then controls and details."""
    tables = _by_evaluation(results)
    answers = [table for table in tables if table.key in ANSWERS]
    details = [table for table in tables if table.key not in ANSWERS]
    return [*overview_tables(results.studies), *answers, *details]


def _by_evaluation(results: Results) -> list[Table[Any]]:
    """The tables about each evaluation, one evaluation after the other."""
    studies = results.studies
    tables = [table for study in studies for table in task_tables(study)]
    if studies:
        tables.append(lengths_table(studies))
    if results.unmatched_controls:
        tables.append(unmatched_controls_table(results))
    tables += [suite_table(suite, means) for suite, means in results.suites.items()]
    details = results.loss_details
    tables += [
        perplexity_table(records, results.variants, details[records[0].settings])
        for records in results.losses
    ]
    for records in results.losses:
        if records[0].estimator.name == GrowingWindow.name:
            continue
        if curves := position_curves(records, results.variants):
            tables.append(position_table(curves, details[records[0].settings]))
    for entries in results.books:
        detail = details[entries[0].records[0].settings]
        tables.append(growing_window_table(entries, detail))
        if differences := differences_to_first(entries):
            tables.append(book_differences_table(differences, detail))
    tables += [recovery_table(of_settings) for of_settings in results.recovery]
    tables += [recovery_depth_table(of_settings) for of_settings in results.recovery_by_depth]
    return tables


def task_tables(study: Study) -> list[Table[Any]]:
    """Every table about one task."""
    task = study.task
    tables: list[Table[Any]] = [
        accuracy_table(study),
        seeds_table(study),
        samples_table(study),
    ]
    if contexts := effective_contexts(study):
        title = f"{task.name}: effective context"
        tables += [effective_context_table(title, contexts), thresholds_table(study)]
    tables += [differences_table(task), controls_table(study)]
    tables += [measure_table(study, measure) for measure in MEASURES[1:]]
    tables += [gain_table(task), mistakes_table(task)]
    return [table for table in tables if table.rows or table.notes]
