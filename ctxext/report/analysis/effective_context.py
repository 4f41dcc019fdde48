"""Effective context under other bars than the usual one, and over several tasks in one figure."""

from collections.abc import Sequence

from ctxext.evals.stats import Effective
from ctxext.report.analysis.records import Variant, group
from ctxext.report.analysis.study import TAU, Study
from ctxext.report.drawing.charts import Axis, Chart, Line, Mark, Point, dot_chart
from ctxext.report.pages.figures import Looks, doublings
from ctxext.report.pages.tables import Table
from ctxext.report.pages.verdict import bounds

TAUS = (0.2, 0.8, 0.85, 0.9)
"""Bars in use: PI (arXiv 2306.15595) 0.2, YaRN (arXiv 2309.00071) 0.8, ours 0.85, PoSE (arXiv 2309.10400) 0.9."""


def nolima(
    study: Study, variant: Variant, *, short: int | None = None, tau: float = TAU
) -> int | None:
    """NoLiMa's effective length (arXiv 2502.05167): the longest length with at least `tau` of the variant's base score.

    The base score is the mean of the rates at lengths up to `short` tokens, by default the window; lengths between may
    fail. None without short lengths or right answers there, 0 if no length passes.
    """
    rates = {
        n: sum(row["correct"] for row in rows) / len(rows)
        for n in study.question.seq_lens
        if (rows := study.question.of(variant, n))
    }
    base = [rate for n, rate in rates.items() if n <= (short or variant.window)]
    if not any(base):
        return None
    return max((n for n, rate in rates.items() if rate >= tau * sum(base) / len(base)), default=0)


def table(study: Study) -> Table | None:
    """Windows per variant and bar, and by NoLiMa's rule; None where no variant has an effective context."""
    variants = sorted(study.reaches, key=lambda variant: -study.reaches[variant].value)
    if not variants:
        return None
    lines = []
    for variant in variants:
        cells = [
            _text(far, variant) if (far := study.effective(variant, tau)) else "\u2013"
            for tau in TAUS
        ]
        lines.append([variant.name, *cells, _own(study, variant)])
    header = ["variant", *(f"{tau:g} of the base" for tau in TAUS), f"{TAU:g} of its own (NoLiMa)"]
    note = (
        "Windows [95 % interval]. Papers use different bars, so their lengths do not compare: 0.2 in PI's, 0.8 in "
        "YaRN's, 0.9 in PoSE's. NoLiMa's rule asks each variant to keep its own mean score at lengths within the "
        "window, knows no interval, and lets lengths between fail."
    )
    return Table(f"{study.question.name}: effective context under other bars", header, lines, note)


def _text(far: Effective, variant: Variant) -> str:
    return f"{far.censored} {far.value / variant.window:.1f} {bounds(far, variant)}".strip()


def _own(study: Study, variant: Variant) -> str:
    found = nolima(study, variant)
    if found is None:
        return "no base score"
    most = max(row["seq_len"] for row in study.question.of(variant))
    return "none" if found == 0 else f"{'> ' * (found == most)}{found / variant.window:.1f}"


def over_tasks(studies: Sequence[Study], looks: Looks, key: str) -> Chart | None:
    """A dot with its interval per task and variant, trained variants alone if there are any; None for one task."""
    shown = [
        (study, variant, far)
        for study in studies
        for variant, far in study.reaches.items()
        if variant.trained or not study.trained
    ]
    if len({study.question.name for study, _, _ in shown}) < 2:
        return None
    mine = group(shown, lambda entry: entry[1].series)
    order = sorted(
        mine, key=lambda who: -sum(far.value for _, _, far in mine[who]) / len(mine[who])
    )
    shown.sort(key=lambda entry: order.index(entry[1].series))
    lengths = [n / variant.window for study, variant, _ in shown for n in study.question.seq_lens]
    low, high = min(1.0, *lengths), max(4.0, *lengths)
    axis = Axis(
        "effective context, windows", low / 1.15, high * 1.15, doublings(low, high), log=True
    )
    dots, rows = [], []
    for study, variant, far in shown:
        point = Point(
            far.value / variant.window, 0, far.low / variant.window, far.high / variant.window
        )
        label, style = looks[variant.series]
        dots.append((Line("", f"{label}: {study.question.name}", style, [point]), far.censored))
        rows.append(
            [
                variant.name,
                study.question.name,
                f"{far.censored} {far.value / variant.window:.2f}".strip(),
                bounds(far, variant),
            ]
        )
    title = "Effective context by variant and task"
    text = (
        f"Dots with 95 % intervals for {len(order)} variants and {len({s.question.name for s, _, _ in shown})} tasks; "
        f"the bar is {TAU:g} of what the base answers at home on the same task."
    )
    marks = [Mark(1, "the window"), Mark(4, "4x")]
    return Chart(
        title,
        text,
        dot_chart(title, text, dots, axis, key=key, marks=marks),
        ["variant", "task", "windows", "95 % interval"],
        rows,
    )
