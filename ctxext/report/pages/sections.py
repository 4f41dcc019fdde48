"""The sections of the page, each made of charts, heatmaps and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ctxext.report.analysis.growing_window import differences_to_first
from ctxext.report.analysis.published import outcomes
from ctxext.report.analysis.records import Variant, group
from ctxext.report.analysis.recovery import GATE
from ctxext.report.analysis.results import Results
from ctxext.report.analysis.runs import RunData
from ctxext.report.analysis.study import THRESHOLD, Study
from ctxext.report.analysis.wavelengths import Spectrum
from ctxext.report.drawing.charts import Chart
from ctxext.report.drawing.heatmap import Heatmap
from ctxext.report.drawing.svg import Style
from ctxext.report.pages import answer_charts, figures, heatmaps
from ctxext.report.pages.answer_tables import controls_table, lengths_table, seeds_table
from ctxext.report.pages.context_tables import thresholds_table
from ctxext.report.pages.expected import expected_table
from ctxext.report.pages.growing_window import (
    book_differences_table,
    growing_window_table,
    rise_chart,
)
from ctxext.report.pages.loss_tables import estimator_title
from ctxext.report.pages.overview_tables import suite_table
from ctxext.report.pages.reach_charts import reach_charts
from ctxext.report.pages.recovery import (
    DEFINITION,
    recovery_chart,
    recovery_depth_table,
    recovery_table,
)
from ctxext.report.pages.styles import Styles, identities, method_styles, variant_styles
from ctxext.report.pages.wavelength_chart import wavelength_chart
from ctxext.report.table import Table


@dataclass
class Section:
    """A part of the page; a section with nothing to show is left out."""

    key: str
    title: str
    lead: str
    charts: list[Chart] = field(default_factory=list)
    heatmaps: list[Heatmap] = field(default_factory=list)
    folded: list[Heatmap] = field(default_factory=list)
    """Shown on request: variants that were not trained."""
    tables: list[Table[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    show_numbers: bool = False
    """Whether the numbers of charts are next to them, instead of folded away."""

    @property
    def filled(self) -> bool:
        return any((self.charts, self.heatmaps, self.folded, self.tables, self.notes))


def all_sections(runs: Sequence[RunData], results: Results) -> list[Section]:
    """Every section with something to show, in the order of the page."""
    curves = {
        _name_in_run(name, run, runs): steps for run in runs for name, steps in run.losses.items()
    }
    spectra = {s.method: s for run in runs for s in run.spectra}
    names = identities(results.variants).values()
    by_name = method_styles([*names, *curves, *spectra])
    styles = variant_styles(results.variants, by_name)
    sections = [
        effective_context_section(results, styles),
        expected_section(runs),
        depth_section(results.studies),
        difference_section(results.studies, runs, styles),
        mistakes_section(results.studies),
        growing_window_section(results, styles),
        recovery_section(results, styles),
        perplexity_section(results, styles),
        controls_section(results.studies, styles),
        lengths_section(results.studies),
        training_section(runs, curves, list(spectra.values()), by_name),
    ]
    return [section for section in sections if section.filled]


def split(study: Study) -> tuple[list[Variant], list[Variant]]:
    """Variants to show and variants to fold away; all are shown where none was trained."""
    variants = study.task.variants
    trained = study.trained or [variant for variant in variants if variant.trained]
    if not trained:
        return variants, []
    return trained, [variant for variant in variants if variant not in trained]


def effective_context_section(results: Results, styles: Styles) -> Section:
    """Effective contexts by task, over tasks and under other thresholds; suites of tasks."""
    section = Section(
        "effective-context",
        "Effective context of each variant",
        f"The length up to which a variant keeps at least {THRESHOLD:g} of the in-window baseline: "
        "the accuracy of the base model as it is, at its own window. The ends of an interval are "
        "lengths that were asked; an arrow means that the effective context may be beyond them.",
        show_numbers=True,
    )
    over_tasks = figures.effective_context_over_tasks(results.studies, styles, "tasks")
    charts = [
        figures.effective_context_chart(study, styles, f"effective{i}")
        for i, study in enumerate(results.studies)
    ]
    section.charts = [chart for chart in (over_tasks, *charts) if chart]
    section.tables = [thresholds_table(study) for study in results.studies if study.effective]
    section.tables += [suite_table(suite, means) for suite, means in results.suites.items()]
    return section


def expected_section(runs: Sequence[RunData]) -> Section:
    """Published numbers next to those measured."""
    section = Section(
        "expected",
        "As published?",
        "What the experiment expects of its trained result, and what was measured. They agree when "
        "the whole 95 % interval is within the tolerance, which is the recipe's and not the "
        "paper's, and disagree when they have no point in common; in between, the data allow both.",
    )
    expected = [outcome for run in runs for outcome in outcomes(run)]
    if expected:
        section.tables = [expected_table(expected, several_runs=len(runs) > 1)]
    return section


def depth_section(studies: Sequence[Study]) -> Section:
    """Accuracy by length, depth and distance."""
    section = Section(
        "where",
        "Where answers are found",
        "Right / asked with 95 % Wilson intervals in percent; yellow: all are right. Depth 0 is "
        "the start of the text; distance is from the needle to the end, in pre-training windows. "
        f"Hatched: fewer than {heatmaps.FEW} questions, too few to say much. A dash: not asked.",
    )
    for study in studies:
        prefix = f"{study.task.name}: " if len(studies) > 1 else ""
        shown, folded = split(study)
        section.heatmaps += _accuracy_heatmaps(study, shown, prefix)
        section.folded += _accuracy_heatmaps(study, folded, prefix)
    return section


def _accuracy_heatmaps(study: Study, variants: Sequence[Variant], prefix: str) -> list[Heatmap]:
    maps = []
    for variant in variants:
        if study.task.has_depth:
            maps.append(heatmaps.by_depth(study, variant))
        if distances := heatmaps.by_distance(study.task, variant):
            maps.append(distances)
    return [replace(heatmap, caption=prefix + heatmap.caption) for heatmap in maps]


def difference_section(
    studies: Sequence[Study], runs: Sequence[RunData], styles: Styles
) -> Section:
    """Paired differences between the variants that matter most."""
    section = Section(
        "difference",
        "Where two variants differ",
        "The same questions asked of both, so that only the variants differ. Blue: the first named "
        f"is better; orange: the second. Hatched: fewer than {heatmaps.FEW} pairs.",
    )
    contrasts = [(study, a, b) for study in studies for a, b in _contrasts(study, runs)]
    for i, (study, a, b) in enumerate(contrasts):
        if chart := figures.difference_chart(study, a, b, styles, f"difference{i}"):
            section.charts.append(chart)
        if heatmap := heatmaps.difference(study.task, a, b):
            section.heatmaps.append(heatmap)
    return section


def _contrasts(study: Study, runs: Sequence[RunData]) -> list[tuple[Variant, Variant]]:
    """(a, b) to compare.

    Of several runs: the best of the second (b) against that of the first. Of one: the best (b)
    against no scaling, and against the next.
    """
    if len(runs) > 1:
        by_checkpoint = group(study.trained, lambda variant: variant.model.checkpoint)
        first, second = (by_checkpoint.get(run.name) for run in runs[:2])
        if first and second:
            return [(first[0], second[0])]
    best = study.best
    if best is None:
        return []
    methods = [variant for variant in study.trained if not variant.model.is_plain]
    others = [study.unscaled(best) or study.zero_shot(best), *methods[1:2]]
    return [(other, best) for other in others if other]


def mistakes_section(studies: Sequence[Study]) -> Section:
    """Kinds of mistakes of the variants that are shown."""
    section = Section(
        "mistakes",
        "What wrong answers are",
        "The first kind that applies: nothing written; another record's value from the text; the "
        "number after a value, as if they were counted; a part of the answer; an answer that only "
        "begins right; no number where one was asked for; copied from the text; made up. A "
        "variant that does not find the needle copies or makes up; one that finds the wrong place "
        "gives another record's value.",
    )
    section.charts = [
        answer_charts.mistakes_chart(study, split(study)[0], f"mistakes{i}")
        for i, study in enumerate(studies)
    ]
    return section


def perplexity_section(results: Results, styles: Styles) -> Section:
    """Perplexity by estimator, and the loss by position."""
    section = Section(
        "perplexity",
        "Perplexity",
        "Each estimator by its name: for one model their values differ, so they are never put "
        "together; and the loss by position in the longest text. Lower is better; a low perplexity "
        "alone does not show that distant text is used.",
    )
    for i, records in enumerate(results.losses):
        detail = results.loss_details[records[0].settings]
        if not any(record.scores.count for record in records):
            title = estimator_title(records[0], detail)
            section.notes.append(
                f"{title}: no key tokens were found, so there is no number to report."
            )
            continue
        variants = results.variants
        section.charts.append(
            figures.perplexity_chart(records, variants, styles, f"ppl{i}", detail=detail)
        )
        position_chart = figures.position_chart(
            records, variants, styles, f"position{i}", detail=detail
        )
        if position_chart:
            section.charts.append(position_chart)
    return section


def growing_window_section(results: Results, styles: Styles) -> Section:
    """The loss of whole books by position, against the level inside the window."""
    section = Section(
        "growing-window",
        "Whole books, read once",
        "The loss of every token of a book after all tokens before it, against its level at home: "
        "the second half of the window. A model that reads on keeps that level. Text that is "
        "predicted well need not be text that is used: recovery and questions show that.",
        show_numbers=True,
    )
    for i, entries in enumerate(results.books):
        detail = results.loss_details[entries[0].records[0].settings]
        if chart := rise_chart(entries, styles, f"books{i}", detail):
            section.charts.append(chart)
        section.tables.append(growing_window_table(entries, detail))
        if differences := differences_to_first(entries):
            section.tables.append(book_differences_table(differences, detail))
    return section


def recovery_section(results: Results, styles: Styles) -> Section:
    """Recovery by length and by depth."""
    section = Section(
        "recovery",
        "What of a needle is recovered",
        f"{DEFINITION} 1: among all the text, the needle is as good as alone; 0: as if it were not "
        f"there. The gate is a lower bound of {GATE:.2f}.",
    )
    for i, entries in enumerate(results.recovery):
        if chart := recovery_chart(entries, styles, f"recovery{i}"):
            section.charts.append(chart)
        section.tables.append(recovery_table(entries))
    section.tables += [recovery_depth_table(entries) for entries in results.recovery_by_depth]
    return section


def controls_section(studies: Sequence[Study], styles: Styles) -> Section:
    """Accuracy, other measures and the context gain by length, with the controls."""
    section = Section(
        "controls",
        "Accuracy and controls",
        "Every variant with 95 % whiskers. Floor: the same text without the needle, where a right "
        "answer is a guess. Needle without text: the needle and the question alone. Threshold: "
        f"{THRESHOLD:g} of the in-window baseline.",
    )
    for i, study in enumerate(studies):
        section.charts += answer_charts.answer_charts(study, styles, f"accuracy{i}")
        section.tables += [seeds_table(study), controls_table(study)]
        variant = study.best or study.task.variants[0]
        if heatmap := heatmaps.gain_by_depth(study, variant):
            section.heatmaps.append(heatmap)
    section.tables = [table for table in section.tables if table.rows]
    return section


def lengths_section(studies: Sequence[Study]) -> Section:
    """Achieved lengths and depths."""
    section = Section(
        "lengths",
        "How long the texts were",
        "Prompt and space for the answer, counted in the model's own tokens, next to the length "
        "that was asked for; and where the needle really was.",
    )
    charts = [answer_charts.lengths_chart(s, f"lengths{i}") for i, s in enumerate(studies)]
    section.charts = [chart for chart in charts if chart]
    if studies:
        section.tables = [lengths_table(studies)]
    return section


WAVELENGTHS = (
    " Below, what each method does to the rotary pairs. A pair turns once per wavelength: one with "
    "a wavelength above the window never made a whole turn in pre-training, so that positions "
    "beyond the window are new to it."
)


def training_section(
    runs: Sequence[RunData],
    curves: Mapping[str, Sequence[dict[str, Any]]],
    spectra: Sequence[Spectrum],
    styles: dict[str, Style],
) -> Section:
    """Training losses, evaluations during training, and the wavelengths of every method."""
    section = Section(
        "training",
        "Training and frequencies",
        "Training losses on the same axes." + (WAVELENGTHS if spectra else ""),
    )
    if curves:
        section.charts.append(figures.loss_chart(curves, styles, "loss"))
    evaluations = {
        _name_in_run(name, run, runs): evaluated
        for run in runs
        for name, evaluated in run.evaluations.items()
    }
    section.charts += reach_charts(evaluations, "reach")
    of_one_base = group(spectra, lambda s: (s.window, len(s.wavelengths)))
    for i, same_base in enumerate(of_one_base.values()):
        section.charts.append(wavelength_chart(same_base, styles, f"waves{i}"))
    section.notes = [_name_in_run(note, run, runs) for run in runs for note in run.notes]
    return section


def _name_in_run(name: str, run: RunData, runs: Sequence[RunData]) -> str:
    return f"{name} ({run.name})" if len(runs) > 1 else name
