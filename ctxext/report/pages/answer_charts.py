"""Charts of answers by length: measures, context gain, mistakes, and achieved lengths."""

from collections.abc import Sequence
from statistics import median

from ctxext.report.analysis.context_gain import gains
from ctxext.report.analysis.lengths import achieved_lengths
from ctxext.report.analysis.mistakes import KINDS, RIGHT, mistakes
from ctxext.report.analysis.records import Variant, group, seq_lens
from ctxext.report.analysis.scores import Scores, chance_level
from ctxext.report.analysis.study import THRESHOLD, Study
from ctxext.report.drawing.axes import Axis, length_axis, linear_axis, percent_axis
from ctxext.report.drawing.bars import Bar, histograms, stacked_bars
from ctxext.report.drawing.charts import Chart, Line, Point, legend_of, line_chart
from ctxext.report.drawing.svg import ReferenceLine, Style, colour_swatch
from ctxext.report.pages.answer_tables import (
    accuracy_table,
    gain_table,
    measure_table,
    mistakes_table,
)
from ctxext.report.pages.measures import ACCURACY, CHOICE, MEASURES, Measure
from ctxext.report.pages.styles import Styles
from ctxext.report.pages.tables_by_length import BASELINE, CONTROLS, GAIN_UNIT, NOT_ASKED
from ctxext.report.table import table_of_texts

CONTROL_LABELS = {"no-needle": "no needle", "needle-only": "needle, no text"}
CONTROL_STYLES = {"no-needle": Style(4, control=True), "needle-only": Style(2, control=True)}
KIND_NAMES = {
    RIGHT: RIGHT,
    "part": "a part of the answer",
    "distractor": "a wrong value from the text",
    "next number": "a value plus one, as if counted on",
    "copied": "copied from the text",
    "no number": "no number where one was asked for",
    "made up": "made up",
    "nothing": "nothing",
    "truncated": "the right number without its last digits",
    "first digits": "two or more first digits right, the rest not",
    "right beginning": "the first word right, the rest not",
}


def answer_charts(study: Study, styles: Styles, key: str) -> list[Chart]:
    """Right answers, then the other measures that the records have, then the context gain."""
    charts = [measure_chart(study, measure, styles, key) for measure in MEASURES]
    charts.append(gain_chart(study, styles, f"{key}-gain"))
    return [chart for chart in charts if chart]


def measure_chart(study: Study, measure: Measure, styles: Styles, key: str) -> Chart | None:
    """One measure by length with 95 % whiskers; None for records without it."""
    every = [*study.scores, *study.control_scores]
    measured = [s for s in every if measure.value(s) is not None]
    if not measured:
        return None
    lines = []
    for (variant, condition), own in group(measured, lambda s: (s.variant, s.condition)).items():
        own.sort(key=lambda s: s.seq_len)
        points = [Point(s.seq_len, *value) for s in own if (value := measure.value(s))]
        if condition == "needle":
            label, style = styles[variant]
            lines.append(Line(label, variant.name, style, points))
        elif variant == study.control_variant:
            name = f"{variant.name}, {CONTROLS[condition]}"
            label = CONTROL_LABELS[condition]
            lines.append(Line(label, name, CONTROL_STYLES[condition], points))
    title = f"{study.task.name}: {measure.title.removesuffix(', %')} by length"
    description = f"{measure.description} {_controls_text(study)}"
    is_percent = measure.title.endswith("%")
    svg = line_chart(
        title,
        description,
        lines,
        length_axis(_lengths(lines)),
        percent_axis(measure.title) if is_percent else _axis_from_zero(measure.title, lines),
        key=f"{key}-{measure.key}",
        references=[ReferenceLine(study.task.window, "window"), *_reference_lines(study, measure)],
        height=330,
    )
    # The other charts have the same lines.
    legend = legend_of(lines) if measure is ACCURACY else []
    numbers = accuracy_table(study) if measure is ACCURACY else measure_table(study, measure)
    return Chart(title, description, svg, numbers, legend)


def _controls_text(study: Study) -> str:
    """Where each control was asked, for a caption."""
    task = study.task
    variant = study.control_variant
    texts = []
    for condition, name in CONTROLS.items():
        control_lens = seq_lens(task.select_controls(variant, condition)) if variant else []
        if not control_lens:
            texts.append(f"{name} {NOT_ASKED}")
        elif control_lens == task.seq_lens:
            texts.append(name)
        else:
            texts.append(f"{name} at {', '.join(f'{n:,}' for n in control_lens)} only")
    of_variant = f", of {variant.name}" if variant else ""
    dotted = BASELINE if study.baselines else f"{BASELINE}, {NOT_ASKED}"
    return f"Grey{of_variant}: {'; '.join(texts)}. Dotted across: {dotted}."


def _reference_lines(study: Study, measure: Measure) -> list[ReferenceLine]:
    """The in-window baseline and the threshold that follows from it, or the level of chance."""
    references = []
    for baseline in study.baselines[:1]:
        value = measure.value(Scores(baseline.variant, baseline.records))
        if value is None:
            continue
        references.append(ReferenceLine(value.value, BASELINE, False))
        if measure is ACCURACY and baseline.correct:
            name = f"threshold, {THRESHOLD:g} of it"
            references.append(ReferenceLine(THRESHOLD * value.value, name, False))
    chance = chance_level(study.task.records)
    if measure is CHOICE and chance is not None:
        references.append(ReferenceLine(chance, f"chance, {chance:.3g} %", False))
    return references


def _axis_from_zero(title: str, lines: Sequence[Line]) -> Axis:
    drawn = [v for line in lines for p in line.points for v in (p.y, p.low, p.high)]
    return linear_axis(title, [0.0, *(v for v in drawn if v is not None)])


def _lengths(lines: Sequence[Line]) -> list[int]:
    return sorted({int(point.x) for line in lines for point in line.points})


def gain_chart(study: Study, styles: Styles, key: str) -> Chart | None:
    """Context gain by length; None where no question was asked without its needle."""
    task = study.task
    by_variant = gains(task)
    if not by_variant:
        return None
    lines = []
    for variant, own in by_variant.items():
        own.sort(key=lambda gain: gain.seq_len)
        label, style = styles[variant]
        points = [Point(gain.seq_len, *gain.mean) for gain in own]
        lines.append(Line(label, variant.name, style, points))
    title = f"{task.name}: context gain by length"
    description = (
        "How much less surprising the right answer is when the text holds it, over the same "
        "questions with and without the needle; 95 % t intervals over documents."
    )
    svg = line_chart(
        title,
        description,
        lines,
        length_axis(sorted({*task.seq_lens, *_lengths(lines)})),
        _axis_from_zero(GAIN_UNIT, lines),
        key=key,
        references=[
            ReferenceLine(task.window, "window"),
            ReferenceLine(0, "nothing gained", False),
        ],
        height=330,
    )
    return Chart(title, description, svg, gain_table(task))


def mistakes_chart(study: Study, variants: Sequence[Variant], key: str) -> Chart:
    """A bar per length for each of `variants`: right answers, then each kind of mistake."""
    entries = mistakes(study.task, variants)
    groups = []
    for variant, own in group(entries, lambda m: m.variant).items():
        bars = [
            Bar(f"{m.seq_len:,}", [(f"k{i}", share) for i, share in enumerate(m.shares.values())])
            for m in own
        ]
        groups.append((variant.name, bars))
    title = f"{study.task.name}: right and wrong answers by length"
    description = (
        "A bar per variant and length: percent of the questions asked, right and by kind of "
        "mistake."
    )
    legend = [
        (colour_swatch(f"k{i}"), KIND_NAMES[kind])
        for i, kind in enumerate((RIGHT, *KINDS))
        if kind == RIGHT or any(m.counts[kind] for m in entries)
    ]
    svg = stacked_bars(title, description, groups, key=key)
    return Chart(title, description, svg, mistakes_table(study.task), legend)


def lengths_chart(study: Study, key: str) -> Chart | None:
    """Histograms of tokens, in percent of those asked for; None where all lengths are exact."""
    achieved = achieved_lengths(study.task)
    if all(lengths.exact for lengths in achieved):
        return None
    shares = {
        lengths.seq_len: [100 * r.question.tokens / lengths.seq_len for r in lengths.records]
        for lengths in achieved
    }
    title = f"{study.task.name}: achieved lengths"
    description = (
        "Histograms of prompt and space for the answer, in percent of the tokens asked for; a row "
        "per length."
    )
    axis = linear_axis(
        "tokens, % of those asked for", [100, *(x for v in shares.values() for x in v)]
    )
    rows = [(f"{n:,}", values) for n, values in shares.items()]
    svg = histograms(title, description, rows, axis, key=key)
    numbers = table_of_texts(
        title,
        ["tokens asked", "min, %", "median, %", "max, %"],
        [[name, *(f"{f(values):.1f}" for f in (min, median, max))] for name, values in rows],
    )
    return Chart(title, description, svg, numbers)
