"""Parts of the page that come from questions alone: how far, what answers are, and how long the texts were."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ctxext.report.analysis import controls, effective_context, lengths, mistakes, published, suites
from ctxext.report.analysis.records import Row, Variant
from ctxext.report.analysis.study import Study
from ctxext.report.drawing import heatmap
from ctxext.report.drawing.charts import Chart
from ctxext.report.pages import answer_charts, figures
from ctxext.report.pages.tables import Table


@dataclass
class Section:
    """A part of the page; a section without anything to show is left out."""

    key: str
    title: str
    lead: str
    charts: list[Chart] = field(default_factory=list)
    heats: list[heatmap.Heat] = field(default_factory=list)
    folded: list[heatmap.Heat] = field(default_factory=list)
    """Shown on request: the variants that were not trained."""
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def filled(self) -> bool:
        return bool(self.charts or self.heats or self.folded or self.tables or self.notes)


def split(study: Study) -> tuple[list[Variant], list[Variant]]:
    """Variants to show and variants to fold away: all are shown where none was trained."""
    trained = study.trained or [variant for variant in study.question.variants if variant.trained]
    return (
        (trained, [variant for variant in study.question.variants if variant not in trained])
        if trained
        else (study.question.variants, [])
    )


def far(studies: Sequence[Study], rows: Sequence[Row], look: figures.Looks) -> Section:
    """Effective contexts, under the usual bar and others, over tasks; suites of tasks."""
    made = Section(
        "reach",
        "How far each variant reads",
        "Effective context: the length up to which an variant answers at least 0.85 of what the base, unscaled, "
        "answers at its own window. The ends of an interval are lengths that were asked; an arrow means "
        "that these end before the answer.",
    )
    made.charts = [
        c for i, s in enumerate(studies) if (c := figures.effective(s, look, f"reach{i}"))
    ]
    if over := effective_context.over_tasks(studies, look, "tasks"):
        made.charts.insert(0, over)
    made.tables = [
        *suites.tables(rows),
        *(table for study in studies if (table := effective_context.table(study))),
    ]
    return made


def expected(found: Sequence[published.Outcome], several: bool) -> Section:
    """Published numbers beside those measured; without any expectation there is nothing to show."""
    made = Section(
        "expected",
        "As published?",
        "What the experiment expects of its trained result, and what was "
        "measured. It agrees when the whole 95 % interval lies within the tolerance, which is the recipe's "
        "and not the paper's, and disagrees when they have no point in common; in between the data allow "
        "both.",
    )
    made.tables = [published.table(found, several)] if found else []
    return made


def rates(studies: Sequence[Study], look: figures.Looks) -> Section:
    """Rates, other measures and the context gain by length, with the controls."""
    made = Section(
        "controls",
        "Rates and controls",
        "Every variant with 95 % whiskers. Floor: the same text without the "
        "needle, what guessing gives. Ceiling: the needle without the text, what the question alone "
        "allows. The bar: 0.85 of the base at home.",
    )
    for i, study in enumerate(studies):
        made.charts += answer_charts.all_of(study, look, f"rates{i}")
        made.tables.append(controls.table(study))
        variant = study.best or next(iter(study.question.variants))
        made.heats += [found] if (found := answer_charts.gain_by_depth(study, variant)) else []
    return made


def wrong(studies: Sequence[Study]) -> Section:
    """Kinds of mistakes of the variants that are shown."""
    made = Section(
        "mistakes",
        "What wrong answers are",
        "The first kind that applies: nothing written; another "
        "record's value from the text; a part of the answer; no number where one was asked; copied from the "
        "text; made up. An variant that does not find the needle copies or makes up; one that finds the wrong "
        "place gives another record's value.",
    )
    made.charts = [
        c
        for i, s in enumerate(studies)
        if (c := mistakes.chart(s.question, split(s)[0], f"mistakes{i}"))
    ]
    return made


def achieved_lengths(studies: Sequence[Study]) -> Section:
    """Achieved lengths and depths, and how much the questions are worth."""
    made = Section(
        "sizes",
        "How long the texts were",
        "Prompt and room for the answer, counted in the model's own "
        "tokens, beside the length that was asked for; and where the needle really lay.",
    )
    made.charts = [
        c for i, s in enumerate(studies) if (c := lengths.chart(s.question, f"sizes{i}"))
    ]
    made.tables = [table] if (table := lengths.table([study.question for study in studies])) else []
    return made
