"""Tables over several tasks: the mean over a suite, and all tasks of a variant."""

from collections.abc import Callable, Sequence
from typing import Any

from ctxext.evals.record import AnswerRecord
from ctxext.report.analysis.records import Variant, group, seq_lens
from ctxext.report.analysis.scores import Scores
from ctxext.report.analysis.study import Study
from ctxext.report.analysis.suites import SuiteMean
from ctxext.report.pages.tables_by_length import BASELINE, table_by_length
from ctxext.report.table import Column, Table


def suite_table(suite: str, means: Sequence[SuiteMean]) -> Table[Any]:
    """The mean over a suite's tasks, with the tasks that are missing in the notes."""

    def text(mean: SuiteMean) -> str:
        error = "" if mean.error is None else f" SE {mean.error:.1f}"
        num_asked = len(mean.tasks)
        return f"{mean.percent:.1f}{error}, {num_asked}/{num_asked + len(mean.missing)}"

    incomplete = [mean for mean in means if mean.missing]
    num_variants = len({mean.variant for mean in means})
    notes = [
        f"missing {', '.join(missing)}: {_where(those, num_variants)}"
        for missing, those in group(incomplete, lambda mean: mean.missing).items()
    ]
    title = (
        f"{suite}: mean score over tasks, % [95 % interval over documents], standard error, "
        "tasks asked / all"
    )
    return table_by_length(title, means, text, key="suites", notes=notes)


def _where(means: Sequence[SuiteMean], num_variants: int) -> str:
    """Such as: every variant at 256, 512; yarn at 1,024."""
    lengths = {
        variant.name: ", ".join(f"{mean.seq_len:,}" for mean in of_variant)
        for variant, of_variant in group(means, lambda mean: mean.variant).items()
    }
    return "; ".join(
        f"{'every variant' if len(names) == num_variants else ', '.join(names)} at {tokens}"
        for tokens, names in group(lengths, lambda name: lengths[name]).items()
    )


def overview_tables(studies: Sequence[Study]) -> list[Table[Any]]:
    """All tasks of a variant in one table, for several tasks and several lengths."""
    if len(studies) < 2:
        return []
    variants = dict.fromkeys(v for study in studies for v in study.task.variants)
    tables = []
    for variant in variants:
        own_studies = [study for study in studies if study.task.select(variant)]
        records = [record for study in own_studies for record in study.task.select(variant)]
        if len(seq_lens(records)) > 1:
            tables.append(_overview_table(variant, own_studies, seq_lens(records)))
    return tables


def _overview_table(
    variant: Variant, studies: Sequence[Study], lengths: Sequence[int]
) -> Table[Study]:
    def cell(seq_len: int) -> Callable[[Study], str]:
        return lambda study: _overview_cell(variant, study.task.select(variant, seq_len))

    def effective(study: Study) -> str:
        if length := study.effective.get(variant):
            return f"{length.in_units_of(variant.window):.1f}"
        baseline = study.baseline(variant)
        if baseline is None:
            return f"no {BASELINE}"
        return "-" if baseline.correct else f"{BASELINE} is 0"

    columns = [
        Column[Study]("task", lambda study: study.task.name),
        *(Column(f"{n:,}{'*' * (n > variant.window)}", cell(n)) for n in lengths),
        Column("effective context, windows", effective),
    ]
    title = (
        f"{variant.name}: % right [95 % interval]; c X of Y: not written, yet the right answer is "
        "chosen in X %, by chance in Y %"
    )
    return Table(title, columns, studies)


def _overview_cell(variant: Variant, records: Sequence[AnswerRecord]) -> str:
    if not records:
        return "-"
    scored = Scores(variant, records)
    value = scored.mean_score or scored.accuracy
    text = f"{value:.0f}"
    choice, chance = scored.choice, scored.chance
    mostly_wrong = value.high is not None and value.high < 50
    if not mostly_wrong or choice is None or chance is None:
        return text
    above_chance = choice.low is not None and choice.low > chance
    return f"{text} c {choice.value:.0f} of {chance:.0f}" if above_chance else text
