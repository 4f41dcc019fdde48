"""The charts of the page, each with the numbers it shows as a table."""

import math
from collections.abc import Callable, Sequence

from ctxext.evals.curves import simultaneous_band
from ctxext.report.analysis.comparisons import pairs
from ctxext.report.analysis.losses import by_estimator, estimator, perplexity, position
from ctxext.report.analysis.records import Row, Variant, cells, document, series
from ctxext.report.analysis.study import TAU, Study
from ctxext.report.drawing.appearance import length_axis, linear_axis, log_axis
from ctxext.report.drawing.charts import (
    Axis,
    Chart,
    Line,
    Mark,
    Point,
    Style,
    dot_chart,
    line_chart,
    swatch,
)
from ctxext.report.pages.verdict import bounds

Looks = dict[tuple[str, str], tuple[str, Style]]
"""(short label, style) of every variant, the same in every chart."""


def effective(study: Study, looks: Looks, key: str) -> Chart | None:
    """Effective context of every variant, with arrows where the lengths asked do not bound it."""
    far = sorted(study.reaches.items(), key=lambda item: -item[1].value)
    if not far:
        return None
    lengths = [n / variant.window for variant, _ in far for n in study.question.seq_lens]
    low, high = min(1.0, *lengths), max(4.0, *lengths)
    axis = Axis(
        "effective context, windows", low / 1.15, high * 1.15, doublings(low, high), log=True
    )
    dots, rows = [], []
    for variant, value in far:
        point = Point(
            value.value / variant.window, 0, value.low / variant.window, value.high / variant.window
        )
        dots.append((Line("", variant.name, looks[variant.series][1], [point]), value.censored))
        rows.append(
            [
                variant.name,
                f"{value.censored} {value.value / variant.window:.2f}".strip(),
                bounds(value, variant),
                f"{value.censored} {value.value:,.0f}".strip(),
            ]
        )
    marks = [Mark(1, "the window"), Mark(4, "4x")]
    title = f"{study.question.name}: effective context"
    text = (
        f"Dots with 95 % intervals for {len(far)} variants: the length up to which each answers at least {TAU:g} of "
        "what the base answers at home."
    )
    return Chart(
        title,
        text,
        dot_chart(title, text, dots, axis, key=key, marks=marks),
        ["variant", "windows", "95 % interval", "tokens"],
        rows,
    )


def difference(study: Study, a: Variant, b: Variant, looks: Looks, key: str) -> Chart | None:
    """b minus a by length, with a band that holds for all lengths together; None for a single length."""
    both = pairs(study.question.of(a), study.question.of(b))
    if len({row["seq_len"] for row, _ in both}) < 2:
        return None
    band = simultaneous_band(
        [y["correct"] - x["correct"] for x, y in both],
        [row["seq_len"] for row, _ in both],
        [document(row) for row, _ in both],
    )
    at = [Point(n, *(None if v is None else 100 * v for v in band[n])) for n in sorted(band)]  # pyright: ignore
    line = Line(looks[b.series][0], f"{b.name} minus {a.name}", looks[b.series][1], at, "band")
    title = f"{study.question.name}: {b.words} minus {a.words}"
    text = (
        "Percentage points on the same questions. The band holds for all lengths together with 95 % (max-t, over "
        "documents): where it leaves 0 out, a difference is shown."
    )
    y = linear_axis("percentage points", [0.0, *_extent([line])])
    svg = line_chart(
        title,
        text,
        [line],
        length_axis(sorted(band)),
        y,
        key=key,
        marks=[Mark(b.window, "window"), Mark(0, "no difference", False)],
    )
    rows = [[f"{p.x:,}", f"{p.y:+.0f}", _between(p.low, p.high, "+.0f")] for p in at]
    return Chart(
        title,
        text,
        svg,
        ["tokens", "points", "95 % band, all lengths together"],
        rows,
        _legend([line]),
    )


def perplexities(rows: Sequence[Row], variants: Sequence[Variant], looks: Looks, key: str) -> Chart:
    """Perplexity by length, rows of one estimator; log y."""
    found = [cell for cell in cells(rows, perplexity) if cell["count"]]
    lines = _lines(
        found, variants, looks, lambda c: Point(c["seq_len"], c["perplexity"], c["low"], c["high"])
    )
    title = estimator(rows[0])[0].upper() + estimator(rows[0])[1:]
    text = f"Lines for {len(lines)} variants, {_banded(lines)}; lower is better."
    y = log_axis("perplexity", _extent(lines))
    svg = line_chart(
        title,
        text,
        lines,
        length_axis(sorted({c["seq_len"] for c in found})),
        y,
        key=key,
        marks=[Mark(found[0]["window"], "window")],
    )
    names = {variant.series: variant.name for variant in variants}
    table = [
        [
            names[series(c)],
            f"{c['seq_len']:,}",
            f"{c['perplexity']:.2f}",
            _between(c["low"], c["high"], ".2f"),
            f"{c['bits_per_byte']:.3f}",
            f"{c['count']:,}",
            str(c["documents"]),
        ]
        for c in found
    ]
    header = [
        "variant",
        "tokens",
        "perplexity",
        "95 % interval",
        "bits per byte",
        "target tokens",
        "documents",
    ]
    return Chart(title, text, svg, header, table, _legend(lines))


def positions(rows: Sequence[Row], variants: Sequence[Variant], looks: Looks, key: str) -> Chart:
    """Nats per token by the number of tokens seen before, at the longest length."""
    found = cells(rows, position)
    lines, table = [], []
    for variant, cell in (
        (variant, cell) for cell in found for variant in variants if variant.series == series(cell)
    ):
        edges = list(zip(cell["edges"], cell["edges"][1:], strict=False))
        bins = list(zip(edges, cell["nll"], cell["low"], cell["high"], cell["count"], strict=True))
        label, style = looks[variant.series]
        at = [Point(math.sqrt(a * (b - 1)), nll, low, high) for (a, b), nll, low, high, _ in bins]
        lines.append(Line(label, variant.name, style, at, _band(variant, variants), markers=False))
        table += [
            [
                variant.name,
                f"{a:,}" if b - a == 1 else f"{a:,} to {b - 1:,}",
                f"{nll:.3f}",
                _between(low, high, ".3f"),
                f"{n:,}",
            ]
            for (a, b), nll, low, high, n in bins
        ]
    title = f"Nats per token by position, at length {found[0]['seq_len']:,}{by_estimator(rows[0])}"
    text = f"Lines for {len(lines)} variants against tokens seen before, {_banded(lines)}; lower is better."
    last = found[0]["edges"][-1]
    x = Axis(
        "tokens seen before",
        1,
        last,
        [(4**i, f"{4**i:,}") for i in range(12) if 4**i <= last],
        log=True,
    )
    y = linear_axis("nats per token", _extent(lines))
    svg = line_chart(title, text, lines, x, y, key=key, marks=[Mark(found[0]["window"], "window")])
    return Chart(
        title,
        text,
        svg,
        ["variant", "tokens seen", "nats per token", "95 % interval", "tokens"],
        table,
        _legend(lines),
    )


def losses(curves: dict[str, list[Row]], styles: dict[str, Style], key: str) -> Chart:
    """Training loss by step of a run and its baselines."""
    lines = [
        Line(
            name,
            name,
            styles[name],
            [Point(r["step"], r["loss"]) for r in rows],
            "none",
            markers=len(rows) < 40,
        )
        for name, rows in curves.items()
    ]
    title, text = (
        "Training loss",
        f"Mean nats per token of logged steps, {len(lines)} curves on the same axes.",
    )
    last = max(row["step"] for rows in curves.values() for row in rows)
    y = linear_axis("nats per token", [p.y for line in lines for p in line.points])
    svg = line_chart(title, text, lines, linear_axis("step", [0, last], zero=True), y, key=key)
    table = [
        [name, f"{r['step']:,}", f"{r['loss']:.4f}"] for name, rows in curves.items() for r in rows
    ]
    return Chart(title, text, svg, ["trained", "step", "loss"], table, _legend(lines))


def _band(variant: Variant, variants: Sequence[Variant]) -> str:
    """Bands for what was trained, for all where nothing was: many bands on each other say nothing."""
    return "band" if variant.trained or not any(a.trained for a in variants) else "none"


def _banded(lines: Sequence[Line]) -> str:
    some = any(line.interval == "none" for line in lines)
    return f"{'those of trained variants ' if some else ''}with 95 % bands over documents"


def _extent(lines: Sequence[Line]) -> list[float]:
    """Every value that is drawn, the edges of bands too."""
    drawn = [
        v for line in lines if line.interval == "band" for p in line.points for v in (p.low, p.high)
    ]
    return [p.y for line in lines for p in line.points] + [v for v in drawn if v is not None]


def _lines(
    found: Sequence[Row], variants: Sequence[Variant], looks: Looks, point: Callable[[Row], Point]
) -> list[Line]:
    return [
        Line(
            looks[variant.series][0],
            variant.name,
            looks[variant.series][1],
            [point(c) for c in _sorted(found) if series(c) == variant.series],
            _band(variant, variants),
        )
        for variant in variants
        if any(series(c) == variant.series for c in found)
    ]


def _sorted(found: Sequence[Row]) -> list[Row]:
    return sorted(found, key=lambda cell: cell["seq_len"])


def _legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    return [(swatch(line.style), line.name) for line in lines]


def doublings(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks in windows."""
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [(2.0**i, f"{2.0**i:g}x") for i in powers]


def _between(low: float | None, high: float | None, form: str) -> str:
    return (
        "one document gives none"
        if low is None or high is None
        else f"[{low:{form}}, {high:{form}}]"
    )
