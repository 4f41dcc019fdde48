"""Tables of effective context lengths, under the usual threshold and under those of papers."""

from collections.abc import Callable, Sequence
from typing import Any

from ctxext.evals.stats import EffectiveLength
from ctxext.report.analysis.effective_context import (
    THRESHOLDS,
    EffectiveContext,
    effective_contexts,
)
from ctxext.report.analysis.records import Variant
from ctxext.report.analysis.study import THRESHOLD, Study
from ctxext.report.pages.tables_by_length import BASELINE
from ctxext.report.table import Column, Table


def effective_context_table(title: str, contexts: Sequence[EffectiveContext]) -> Table[Any]:
    """Tokens and windows under the usual threshold."""
    several_tasks = len({context.study.task for context in contexts}) > 1
    task = [Column[EffectiveContext]("task", lambda c: c.study.task.name)] if several_tasks else []
    columns = [
        Column[EffectiveContext]("variant", lambda c: c.variant.name),
        *task,
        Column[EffectiveContext]("tokens", lambda c: c.length.estimate(",.0f")),
        Column[EffectiveContext](
            "windows [95 % interval]", lambda c: windows_text(c.length, c.variant)
        ),
    ]
    return Table(title, columns, contexts, key="effective", results=contexts)


def thresholds_table(study: Study) -> Table[EffectiveContext]:
    """Windows under the thresholds of papers; without rows where no variant has a length."""

    def under(threshold: float) -> Callable[[EffectiveContext], str]:
        def text(context: EffectiveContext) -> str:
            length = context.by_threshold[threshold]
            return windows_text(length, context.variant) if length else "\u2013"

        return text

    def by_own_baseline(context: EffectiveContext) -> str:
        length = context.by_own_baseline
        if length is None:
            return "no base score"
        if length == 0:
            return "none"
        censored = "> " if length == context.longest else ""
        return f"{censored}{length / context.variant.window:.2f}"

    columns = [
        Column[EffectiveContext]("variant", lambda c: c.variant.name),
        *(Column(f"at {threshold:g}", under(threshold)) for threshold in THRESHOLDS),
        Column("NoLiMa", by_own_baseline),
    ]
    title = f"{study.task.name}: effective context by threshold, windows [95 % interval]"
    note = (
        f"A threshold is a share of the {BASELINE}. Papers use others than {THRESHOLD:g}, so that "
        "their lengths are not comparable: PI 0.2, YaRN 0.8, PoSE 0.9. NoLiMa's rule compares each "
        "variant with its own mean score at lengths within the window; it has no interval, and "
        "lengths in between may fail."
    )
    return Table(title, columns, effective_contexts(study), [note])


def windows_text(length: EffectiveLength, variant: Variant) -> str:
    """Such as > 3.97 [3.0, > 4.0]: windows of pre-training."""
    windows = length.in_units_of(variant.window)
    return f"{windows.estimate('.2f')} {windows.bounds('.1f')}"
