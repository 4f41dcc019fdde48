"""Charts of effective context, differences, perplexity and training loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ctxext.evals.curves import simultaneous_band
from ctxext.evals.record import LossRecord
from ctxext.report.analysis.comparisons import pairs
from ctxext.report.analysis.effective_context import EffectiveContext, effective_contexts
from ctxext.report.analysis.perplexity import perplexities, position_curves
from ctxext.report.analysis.records import Variant, documents, group
from ctxext.report.analysis.study import THRESHOLD, Study
from ctxext.report.drawing.axes import Axis, length_axis, linear_axis, log_axis, windows_axis
from ctxext.report.drawing.charts import Chart, Dot, Line, Point, dot_chart, legend_of, line_chart
from ctxext.report.drawing.svg import ReferenceLine, Style
from ctxext.report.pages.context_tables import effective_context_table
from ctxext.report.pages.loss_tables import (
    estimator_title,
    perplexity_numbers,
    position_numbers,
    position_title,
)
from ctxext.report.pages.styles import Styles
from ctxext.report.pages.tables_by_length import BASELINE, ONE_DOCUMENT
from ctxext.report.table import Table, counted, table_of_texts


def effective_context_chart(study: Study, styles: Styles, key: str) -> Chart | None:
    """Effective context of every variant, with arrows where the lengths asked do not bound it."""
    contexts = effective_contexts(study)
    if not contexts:
        return None
    title = f"{study.task.name}: effective context"
    description = (
        f"Dots with 95 % intervals for {counted(contexts, 'variant')}: the length up to which "
        f"accuracy stays above {THRESHOLD:g} of the {BASELINE}."
    )
    return _dots_in_windows(title, description, contexts, lambda c: c.variant.name, styles, key)


def effective_context_over_tasks(
    studies: Sequence[Study], styles: Styles, key: str
) -> Chart | None:
    """A dot per task and variant, trained ones only if there are any; None for a single task."""
    contexts = [
        context
        for study in studies
        for context in effective_contexts(study)
        if context.variant.trained or not study.trained
    ]
    num_tasks = len({context.study.task.name for context in contexts})
    if num_tasks < 2:
        return None
    by_variant = group(contexts, lambda context: context.variant)
    means = {
        variant: sum(context.length.value for context in of_variant) / len(of_variant)
        for variant, of_variant in by_variant.items()
    }
    contexts.sort(key=lambda context: -means[context.variant])
    title = "Effective context by variant and task"
    description = (
        f"Dots with 95 % intervals for {counted(by_variant, 'variant')} and {num_tasks} tasks; the "
        f"threshold is {THRESHOLD:g} of the {BASELINE} of the same task."
    )

    def name(context: EffectiveContext) -> str:
        return f"{styles[context.variant][0]}: {context.study.task.name}"

    return _dots_in_windows(title, description, contexts, name, styles, key)


def _dots_in_windows(
    title: str,
    description: str,
    contexts: Sequence[EffectiveContext],
    name: Callable[[EffectiveContext], str],
    styles: Styles,
    key: str,
) -> Chart:
    dots = [
        Dot(
            name(context),
            styles[context.variant][1],
            context.windows.value,
            context.windows.low,
            context.windows.high,
            context.windows.censored,
        )
        for context in contexts
    ]
    lengths = [n / c.variant.window for c in contexts for n in c.study.task.seq_lens]
    axis = windows_axis("effective context, windows", lengths)
    references = [ReferenceLine(1, "the window"), ReferenceLine(4, "4x")]
    svg = dot_chart(title, description, dots, axis, key=key, references=references)
    return Chart(title, description, svg, effective_context_table(title, contexts))


def difference_chart(
    study: Study, a: Variant, b: Variant, styles: Styles, key: str
) -> Chart | None:
    """b minus a by length, with a simultaneous band; None for a single length."""
    both = pairs(study.task.select(a), study.task.select(b))
    lengths = [x.seq_len for x, _ in both]
    if len(set(lengths)) < 2:
        return None
    differences = [y.scores.correct - x.scores.correct for x, y in both]
    band = simultaneous_band(differences, lengths, documents(x for x, _ in both))
    points = {n: band[n].scaled(100) for n in sorted(band)}
    label, style = styles[b]
    at = [Point(n, *interval) for n, interval in points.items()]
    line = Line(label, f"{b.name} minus {a.name}", style, at, "band")
    title = f"{study.task.name}: {b.phrase} minus {a.phrase}"
    description = (
        "Percentage points on the same questions. The 95 % band holds for all lengths together "
        "(max-t, over documents): where it excludes 0, the difference is significant."
    )
    svg = line_chart(
        title,
        description,
        [line],
        length_axis(list(points)),
        linear_axis("percentage points", [0.0, *_extent([line])]),
        key=key,
        references=[ReferenceLine(b.window, "window"), ReferenceLine(0, "no difference", False)],
    )
    numbers = table_of_texts(
        title,
        ["tokens", "points", "95 % band, all lengths together"],
        [
            [f"{n:,}", f"{x.value:+z.0f}", x.bounds("+z.0f", ONE_DOCUMENT)]
            for n, x in points.items()
        ],
    )
    return Chart(title, description, svg, numbers, legend_of([line]))


def perplexity_chart(
    records: Sequence[LossRecord],
    variants: Sequence[Variant],
    styles: Styles,
    key: str,
    *,
    detail: str = "",
) -> Chart:
    """Perplexity by length, of records of one estimator; logarithmic."""
    measured = [p for p in perplexities(records, variants) if p.perplexity]
    lines = []
    for variant, own in group(measured, lambda p: p.variant).items():
        label, style = styles[variant]
        own.sort(key=lambda p: p.seq_len)
        at = [Point(p.seq_len, *p.perplexity) for p in own if p.perplexity]
        lines.append(Line(label, variant.name, style, at, _interval(variant, variants)))
    title = estimator_title(records[0], detail)
    title = title[0].upper() + title[1:]
    description = f"Lines for {counted(lines, 'variant')}, {_bands_text(lines)}; lower is better."
    svg = line_chart(
        title,
        description,
        lines,
        length_axis(sorted({p.seq_len for p in measured})),
        log_axis("perplexity", _extent(lines)),
        key=key,
        references=[ReferenceLine(measured[0].variant.window, "window")],
    )
    return Chart(title, description, svg, perplexity_numbers(title, measured), legend_of(lines))


def position_chart(
    records: Sequence[LossRecord],
    variants: Sequence[Variant],
    styles: Styles,
    key: str,
    *,
    detail: str = "",
) -> Chart | None:
    """Nats per token by the number of tokens seen before; None where no record has it."""
    curves = position_curves(records, variants)
    if not curves:
        return None
    lines = []
    for curve in curves:
        label, style = styles[curve.variant]
        middles = [math.sqrt(first * last) for first, last in curve.bins]
        points = [Point(x, *nll) for x, nll in zip(middles, curve.nll, strict=True)]
        interval = _interval(curve.variant, variants)
        lines.append(Line(label, curve.variant.name, style, points, interval, markers=False))
    title = position_title(curves[0], detail)
    description = (
        f"Lines for {counted(lines, 'variant')} against tokens seen before, {_bands_text(lines)}; "
        "lower is better."
    )
    last = curves[0].edges[-1]
    ticks = [(4**i, f"{4**i:,}") for i in range(12) if 4**i <= last]
    svg = line_chart(
        title,
        description,
        lines,
        Axis("tokens seen before", 1, last, ticks, log=True),
        linear_axis("nats per token", _extent(lines)),
        key=key,
        references=[ReferenceLine(curves[0].variant.window, "window")],
    )
    return Chart(title, description, svg, position_numbers(title, curves), legend_of(lines))


def loss_chart(
    curves: Mapping[str, Sequence[dict[str, Any]]], styles: dict[str, Style], key: str
) -> Chart:
    """Training loss by step, of a run and its baselines."""
    lines = []
    for name, steps in curves.items():
        points = [Point(step["step"], step["loss"]) for step in steps]
        markers = len(points) < 40
        lines.append(Line(name, name, styles[name], points, "none", markers=markers))
    title = "Training loss"
    description = f"Mean nats per token of logged steps, {len(lines)} curves on the same axes."
    points = [point for line in lines for point in line.points]
    svg = line_chart(
        title,
        description,
        lines,
        linear_axis("step", [0, max(point.x for point in points)], zero=True),
        linear_axis("nats per token", [point.y for point in points]),
        key=key,
    )
    rows = [
        [line.name, f"{point.x:,}", f"{point.y:.4f}"] for line in lines for point in line.points
    ]
    numbers: Table[Any] = table_of_texts(title, ["trained", "step", "loss"], rows)
    return Chart(title, description, svg, numbers, legend_of(lines))


def _interval(variant: Variant, variants: Sequence[Variant]) -> Literal["band", "none"]:
    """Bands for trained variants, for all where none was trained: too many cannot be read."""
    return "band" if variant.trained or not any(v.trained for v in variants) else "none"


def _bands_text(lines: Sequence[Line]) -> str:
    bands = "with 95 % bands over documents"
    return f"those of trained variants {bands}" if _some_without(lines) else bands


def _some_without(lines: Sequence[Line]) -> bool:
    return any(line.interval == "none" for line in lines)


def _extent(lines: Sequence[Line]) -> list[float]:
    """Every value that is drawn, including the edges of bands."""
    bands = [line for line in lines if line.interval == "band"]
    edges = [v for line in bands for point in line.points for v in (point.low, point.high)]
    values = [point.y for line in lines for point in line.points]
    return values + [v for v in edges if v is not None]
