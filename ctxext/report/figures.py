"""The charts of the page, each with the numbers it shows as a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctxext.report.charts import Axis, Chart, Line, Mark, Point, Style, dot_chart, line_chart, swatch
from ctxext.report.look import length_axis, linear_axis, log_axis
from ctxext.report.rows import Arm, Row, by_estimator, cells, estimator, group, perplexity, position, rate, series
from ctxext.report.study import TAU, Study
from ctxext.report.verdict import bounds


@dataclass(frozen=True)
class Table:
    """Plain text in cells; the first of a row is its header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


CONTROLS = {"no-needle": "no needle (floor)", "needle-only": "needle only (ceiling)"}
CONTROL_STYLES = {"no-needle": Style(4, control=True), "needle-only": Style(2, control=True)}
Looks = dict[tuple[str, str], tuple[str, Style]]
"""(short label, style) of every arm, the same in every chart."""


def effective(study: Study, looks: Looks, key: str) -> Chart | None:
    """Effective context of every arm, with arrows where the lengths asked do not bound it."""
    far = sorted(study.reaches.items(), key=lambda item: -item[1].value)
    if not far:
        return None
    lengths = [n / arm.window for arm, _ in far for n in study.question.seq_lens]
    low, high = min(1.0, *lengths), max(4.0, *lengths)
    axis = Axis("effective context, windows", low / 1.15, high * 1.15, _doublings(low, high), log=True)
    dots, rows = [], []
    for arm, value in far:
        point = Point(value.value / arm.window, 0, value.low / arm.window, value.high / arm.window)
        dots.append((Line("", arm.name, looks[arm.series][1], [point]), value.censored))
        rows.append([arm.name, f"{value.censored} {value.value / arm.window:.2f}".strip(),
                     bounds(value, arm), f"{value.censored} {value.value:,.0f}".strip()])  # fmt: skip
    marks = [Mark(1, "the window"), Mark(4, "4x")]
    title = f"{study.question.name}: effective context"
    text = (f"Dots with 95 % intervals for {len(far)} arms: the length up to which each answers at least {TAU:g} of "
            "what the base answers at home.")  # fmt: skip
    return Chart(title, text, dot_chart(title, text, dots, axis, key=key, marks=marks),
                 ["arm", "windows", "95 % interval", "tokens"], rows)  # fmt: skip


def rates(study: Study, looks: Looks, key: str) -> Chart:
    """Right answers by length with Wilson whiskers: every arm, the controls of one, and the base at home."""
    question = study.question
    names = {arm.series: arm.name for arm in question.arms}
    lines, rows = [], []
    for (who, kind), found in group(
        cells(question.rows, rate) + cells(question.controls, rate),
        lambda cell: (series(cell), cell.get("condition", "needle")),
    ).items():
        name = f"{names.get(who, who[1])}{', ' + CONTROLS[kind] if kind != 'needle' else ''}"
        rows += [[name, f"{cell['seq_len']:,}", f"{cell['correct']}/{cell['n']}", _percent(cell["rate"]),
                  f"[{_percent(cell['low'])}, {_percent(cell['high'])}]", f"{cell['answer_probability']:.2f}"]
                 for cell in found]  # fmt: skip
        if kind == "needle" or who == _lead(study):
            label, style = looks[who] if kind == "needle" else (kind.replace("-", " "), CONTROL_STYLES[kind])
            at = [Point(c["seq_len"], 100 * c["rate"], 100 * c["low"], 100 * c["high"]) for c in _sorted(found)]
            lines.append(Line(label, name, style, at))
    marks = [Mark(question.rows[0]["window"], "window")]
    for home in study.homes[:1]:
        marks.append(Mark(100 * TAU * home.right / len(home.rows), f"the bar, {TAU:g} of home", False))
    title = f"{question.name}: right answers by length"
    text = f"Lines for {len(lines)} arms and controls with 95 % Wilson whiskers; percent right against tokens."
    y = Axis("right answers, %", 0, 100, [(v, str(v)) for v in (0, 25, 50, 75, 100)])
    svg = line_chart(title, text, lines, length_axis(question.seq_lens), y, key=key, marks=marks, height=330)
    return Chart(title, text, svg, ["arm", "tokens", "right", "%", "95 % interval", "p(answer)"], rows, _legend(lines))


def _lead(study: Study) -> tuple[str, str] | None:
    """The arm whose controls are drawn: the best, else the first that has any."""
    who = list(dict.fromkeys(series(row) for row in study.question.controls))
    return study.best.series if study.best and study.best.series in who else who[0] if who else None


def controls(study: Study) -> Table | None:
    """Floor and ceiling of every arm, beside its score in the window; None without controls."""
    question, window = study.question, study.question.rows[0]["window"]
    if not question.controls:
        return None
    at_home = [row for row in question.rows if row["seq_len"] == window]
    found = {(c["condition"], c["seq_len"], series(c)): c for c in cells(question.controls, rate)}
    found |= {("needle", window, series(c)): c for c in cells(at_home, rate)}
    columns = sorted({key[:2] for key in found}, key=lambda key: (["needle", *CONTROLS].index(key[0]), key[1]))
    bases = [home.arm for home in study.homes]
    lines = []
    for arm in question.arms:
        texts = [_rate_text(found[key]) if (key := (*column, arm.series)) in found else "\u2013" for column in columns]
        lines.append([arm.name + (" (the base)" if arm in bases else ""), *texts])
    header = [f"{CONTROLS.get(kind, 'as asked')}, {n:,}" for kind, n in columns]
    return Table(f"{question.name}: controls, right / asked [95 % interval, %]", ["arm", *header], lines)


def _rate_text(cell: Row) -> str:
    return f"{cell['correct']}/{cell['n']} [{_percent(cell['low'])},\u00a0{_percent(cell['high'])}]"


def perplexities(rows: Sequence[Row], arms: Sequence[Arm], looks: Looks, key: str) -> Chart:
    """Perplexity by length, rows of one estimator; log y."""
    found = [cell for cell in cells(rows, perplexity) if cell["count"]]
    lines = _lines(found, arms, looks, lambda c: Point(c["seq_len"], c["perplexity"], c["low"], c["high"]))
    title = estimator(rows[0])[0].upper() + estimator(rows[0])[1:]
    text = f"Lines for {len(lines)} arms, {_banded(lines)}; lower is better."
    y = log_axis("perplexity", _extent(lines))
    svg = line_chart(title, text, lines, length_axis(sorted({c["seq_len"] for c in found})), y, key=key,
                     marks=[Mark(found[0]["window"], "window")])  # fmt: skip
    names = {arm.series: arm.name for arm in arms}
    table = [[names[series(c)], f"{c['seq_len']:,}", f"{c['perplexity']:.2f}", _between(c["low"], c["high"], ".2f"),
              f"{c['bits_per_byte']:.3f}", f"{c['count']:,}", str(c["documents"])] for c in found]  # fmt: skip
    header = ["arm", "tokens", "perplexity", "95 % interval", "bits per byte", "target tokens", "documents"]
    return Chart(title, text, svg, header, table, _legend(lines))


def positions(rows: Sequence[Row], arms: Sequence[Arm], looks: Looks, key: str) -> Chart:
    """Nats per token by the number of tokens seen before, at the longest length."""
    found = cells(rows, position)
    lines, table = [], []
    for arm, cell in ((arm, cell) for cell in found for arm in arms if arm.series == series(cell)):
        edges = list(zip(cell["edges"], cell["edges"][1:], strict=False))
        bins = list(zip(edges, cell["nll"], cell["low"], cell["high"], cell["count"], strict=True))
        label, style = looks[arm.series]
        at = [Point(math.sqrt(a * (b - 1)), nll, low, high) for (a, b), nll, low, high, _ in bins]
        lines.append(Line(label, arm.name, style, at, _band(arm, arms), markers=False))
        table += [[arm.name, f"{a:,}" if b - a == 1 else f"{a:,} to {b - 1:,}", f"{nll:.3f}",
                   _between(low, high, ".3f"), f"{n:,}"] for (a, b), nll, low, high, n in bins]  # fmt: skip
    title = f"Nats per token by position, at length {found[0]['seq_len']:,}{by_estimator(rows[0])}"
    text = f"Lines for {len(lines)} arms against tokens seen before, {_banded(lines)}; lower is better."
    last = found[0]["edges"][-1]
    x = Axis("tokens seen before", 1, last, [(4**i, f"{4**i:,}") for i in range(12) if 4**i <= last], log=True)
    y = linear_axis("nats per token", _extent(lines))
    svg = line_chart(title, text, lines, x, y, key=key, marks=[Mark(found[0]["window"], "window")])
    return Chart(title, text, svg, ["arm", "tokens seen", "nats per token", "95 % interval", "tokens"], table,
                 _legend(lines))  # fmt: skip


def losses(curves: dict[str, list[Row]], styles: dict[str, Style], key: str) -> Chart:
    """Training loss by step of a run and its baselines."""
    lines = [
        Line(name, name, styles[name], [Point(r["step"], r["loss"]) for r in rows], "none", markers=len(rows) < 40)
        for name, rows in curves.items()
    ]
    title, text = "Training loss", f"Mean nats per token of logged steps, {len(lines)} curves on the same axes."
    last = max(row["step"] for rows in curves.values() for row in rows)
    y = linear_axis("nats per token", [p.y for line in lines for p in line.points])
    svg = line_chart(title, text, lines, linear_axis("step", [0, last], zero=True), y, key=key)
    table = [[name, f"{r['step']:,}", f"{r['loss']:.4f}"] for name, rows in curves.items() for r in rows]
    return Chart(title, text, svg, ["trained", "step", "loss"], table, _legend(lines))


def _band(arm: Arm, arms: Sequence[Arm]) -> str:
    """Bands for what was trained, for all where nothing was: many bands on each other say nothing."""
    return "band" if arm.trained or not any(a.trained for a in arms) else "none"


def _banded(lines: Sequence[Line]) -> str:
    some = any(line.interval == "none" for line in lines)
    return f"{'those of trained arms ' if some else ''}with 95 % bands over documents"


def _extent(lines: Sequence[Line]) -> list[float]:
    """Every value that is drawn, the edges of bands too."""
    drawn = [v for line in lines if line.interval == "band" for p in line.points for v in (p.low, p.high)]
    return [p.y for line in lines for p in line.points] + [v for v in drawn if v is not None]


def _lines(found: Sequence[Row], arms: Sequence[Arm], looks: Looks, point: Callable[[Row], Point]) -> list[Line]:
    return [
        Line(looks[arm.series][0], arm.name, looks[arm.series][1],
             [point(c) for c in _sorted(found) if series(c) == arm.series], _band(arm, arms))
        for arm in arms if any(series(c) == arm.series for c in found)
    ]  # fmt: skip


def _sorted(found: Sequence[Row]) -> list[Row]:
    return sorted(found, key=lambda cell: cell["seq_len"])


def _legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    return [(swatch(line.style), line.name) for line in lines]


def _doublings(low: float, high: float) -> list[tuple[float, str]]:
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [(2.0**i, f"{2.0**i:g}x") for i in powers]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _between(low: float | None, high: float | None, form: str) -> str:
    return "one document gives none" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
