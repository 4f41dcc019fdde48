"""Charts of answers by length: every variant, one variant's floor and ceiling, the base at home; and what context gains."""

from collections.abc import Sequence

from ctxext.evals.stats import Interval
from ctxext.report.analysis import controls
from ctxext.report.analysis.context_gain import UNIT, gains
from ctxext.report.analysis.measures import CHOICE, NATS, RIGHT, SCORE, Measure, chance, measured
from ctxext.report.analysis.records import Row, Variant, group, series
from ctxext.report.analysis.study import TAU, Study
from ctxext.report.drawing.appearance import length_axis, linear_axis
from ctxext.report.drawing.charts import Axis, Chart, Line, Mark, Point, line_chart, swatch
from ctxext.report.drawing.colours import diverging
from ctxext.report.drawing.heatmap import Cell, Heat, depth_text, length_text
from ctxext.report.pages.figures import Looks

PERCENT = [(v, str(v)) for v in (0, 25, 50, 75, 100)]


def curve(study: Study, looks: Looks, measure: Measure, key: str) -> Chart | None:
    """One measure by length with 95 % whiskers; None for rows without it."""
    question, found = study.question, measured(study.question, measure)
    if not found:
        return None
    variants = {variant.series: variant.name for variant in question.variants}
    lines, rows = [], []
    for (who, kind), cells in group(
        found, lambda c: (series(c), c.get("condition", "needle"))
    ).items():
        cells = sorted(cells, key=lambda cell: cell["seq_len"])
        name = f"{variants.get(who, who[1])}{', ' + controls.CONTROLS[kind] if kind != 'needle' else ''}"
        rows += [[name, f"{c['seq_len']:,}", *_numbers(c, measure)] for c in cells]
        if kind == "needle" or who == controls.lead(study):
            label, style = (
                looks[who]
                if kind == "needle"
                else (kind.replace("-", " "), controls.CONTROL_STYLES[kind])
            )
            lines.append(
                Line(label, name, style, [Point(c["seq_len"], *c["interval"]) for c in cells])
            )
    title = f"{question.name}: {measure.title.removesuffix(', %')} by length"
    y = (
        Axis(measure.title, 0, 100, PERCENT)
        if measure.title.endswith("%")
        else _axis(measure.title, lines)
    )
    text = f"{measure.says} {controls.said(study)}"
    marks = [Mark(question.rows[0]["window"], "window"), *_across(study, measure)]
    svg = line_chart(
        title, text, lines, length_axis(_lengths(lines)), y, key=key, marks=marks, height=330
    )
    counted = ["right" if measure is RIGHT else "chosen" if measure is CHOICE else "questions"]
    header = ["variant", "tokens", *counted, measure.title, "95 % interval"]
    legend = (
        [(swatch(line.style), line.name) for line in lines] if measure is RIGHT else []
    )  # the same for all
    return Chart(title, text, svg, header, rows, legend)


def _across(study: Study, measure: Measure) -> list[Mark]:
    """The base at home and what is derived from it, and the level of chance."""
    marks = []
    for home in study.homes[:1]:
        if value := measure.of(home.rows):
            marks.append(Mark(value.value, controls.HOME, False))
            if measure is RIGHT and home.right:
                marks.append(Mark(TAU * value.value, f"the bar, {TAU:g} of home", False))
    if measure is CHOICE and (level := chance(study.question.rows)) is not None:
        marks.append(Mark(level, f"chance, {level:.3g} %", False))
    return marks


def _numbers(cell: Row, measure: Measure) -> list[str]:
    interval, rows = cell["interval"], cell["rows"]
    hits = {RIGHT.key: "correct", CHOICE.key: "chosen"}.get(measure.key)
    count = f"{sum(row[hits] for row in rows)}/{len(rows)}" if hits else str(len(rows))
    return [count, f"{interval.value:{measure.form}}", _bounds(interval, measure.form)]


def _bounds(interval: Interval, form: str) -> str:
    low, high = interval.low, interval.high
    return (
        "one document gives none"
        if low is None or high is None
        else f"[{low:{form}}, {high:{form}}]"
    )


def _axis(title: str, lines: Sequence[Line]) -> Axis:
    drawn = [
        v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None
    ]
    return linear_axis(title, [0.0, *drawn])


def _lengths(lines: Sequence[Line]) -> list[int]:
    return sorted({int(p.x) for line in lines for p in line.points})


def gain(study: Study, looks: Looks, key: str) -> Chart | None:
    """Context gain by length; None where no question was asked without its needle."""
    found = gains(study.question)
    if not found:
        return None
    lines, rows = [], []
    for variant in study.question.variants:
        cells = sorted(found.get(variant.series, []), key=lambda cell: cell["seq_len"])
        points = [Point(c["seq_len"], *c["interval"]) for c in cells]
        if cells:
            label, style = looks[variant.series]
            lines.append(Line(label, variant.name, style, points))
        rows += [
            [
                variant.name,
                f"{c['seq_len']:,}",
                str(c["n"]),
                f"{c['interval'].value:.2f}",
                _bounds(c["interval"], ".2f"),
            ]
            for c in cells
        ]
    silent = [variant.name for variant in study.question.variants if variant.series not in found]
    rows += [[name, "", "not asked", "", ""] for name in silent]
    title = f"{study.question.name}: context gain by length"
    more = (
        f"; {len(silent)} of {len(study.question.variants)} variants were not asked without the needle"
        if silent
        else ""
    )
    text = (
        "How much less surprising the right answer is with the needle in the text than without it, the same "
        f"questions; 95 % bootstrap intervals over documents. 0 is the floor{more}."
    )
    y, lengths = _axis(UNIT, lines), sorted({*study.question.seq_lens, *_lengths(lines)})
    marks = [Mark(study.question.rows[0]["window"], "window"), Mark(0, "nothing gained", False)]
    svg = line_chart(title, text, lines, length_axis(lengths), y, key=key, marks=marks, height=330)
    return Chart(
        title, text, svg, ["variant", "tokens", "pairs", f"gain, {UNIT}", "95 % interval"], rows
    )


def gain_by_depth(study: Study, variant: Variant) -> Heat | None:
    """Context gain of an variant by length and depth; None without any, or at a single depth."""
    cells = gains(study.question, lambda row: (row.get("depth", 0.0), row["seq_len"])).get(
        variant.series, []
    )
    depths, lengths = sorted({c["depth"] for c in cells}), sorted({c["seq_len"] for c in cells})
    if len(depths) < 2:
        return None
    at = {(c["depth"], c["seq_len"]): c for c in cells}
    most = max(abs(c["interval"].value) for c in cells) or 1.0
    lines = [
        (depth_text(d), [_gain_cell(at[d, n], most) if (d, n) in at else None for n in lengths])
        for d in depths
    ]
    note = "Blue: the answer is more likely with the needle. In small type the 95 % interval over documents."
    return Heat(
        f"{variant.words}: context gain, {UNIT}",
        "depth",
        [length_text(n, variant) for n in lengths],
        lines,
        note,
    )


def _gain_cell(cell: Row, most: float) -> Cell:
    interval = cell["interval"]
    small = (
        f"n = {cell['n']}" if interval.low is None else f"{interval.low:.1f} to {interval.high:.1f}"
    )
    return Cell(f"{interval.value:.2f}", small, *diverging(interval.value / most), False)


def all_of(study: Study, looks: Looks, key: str) -> list[Chart]:
    """Right answers, then the other measures that the rows have, then what context gains."""
    made = [curve(study, looks, m, f"{key}-{m.key}") for m in (RIGHT, SCORE, CHOICE, NATS)]
    return [chart for chart in (*made, gain(study, looks, f"{key}-gain")) if chart]
