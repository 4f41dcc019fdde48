"""How variants look and how axes are divided, the same on the whole page."""

import math
import re
from collections.abc import Iterable, Sequence

from ctxext.report.analysis.records import Variant
from ctxext.report.drawing.charts import Axis, Style


def looks(
    variants: Sequence[Variant], styles: dict[str, Style]
) -> dict[tuple[str, str], tuple[str, Style]]:
    """(short label, style) per variant: one colour and marker per method, dashes for what was not trained."""
    short = {variant.series: _short(variant) for variant in variants}
    if len(set(short.values())) < len(variants):
        short = {variant.series: variant.name for variant in variants}
    return {
        variant.series: (
            short[variant.series],
            styles[identity(variant)]._replace(dashed=variant.steps == 0),
        )
        for variant in variants
    }


def method_styles(names: Iterable[str]) -> dict[str, Style]:
    """A style per name in order of appearance; the first, grey, is kept for "none"."""
    others = [name for name in dict.fromkeys(names) if name != "none"]
    return {"none": Style(0), **{name: Style(1 + i) for i, name in enumerate(others)}}


def identity(variant: Variant) -> str:
    """What shares a colour and a marker: a method of a checkpoint, trained or not."""
    return (
        variant.name
        if variant.steps is None
        else variant.what + variant.name[len(variant.series[1]) :]
    )


def _short(variant: Variant) -> str:
    """The name without fields, and how long it was trained: "yarn, 60 steps"."""
    what = re.sub(
        r"\([^()]*\)", "", variant.what if variant.steps is not None else variant.series[1]
    )
    where = variant.name[len(variant.series[1]) :]
    return (
        what
        + (
            ""
            if variant.steps is None
            else f", {variant.steps} steps"
            if variant.steps
            else ", zero-shot"
        )
        + where
    )


def length_axis(seq_lens: Sequence[int]) -> Axis:
    """Tokens by doublings, a tick per length asked."""
    ticks = [(n, f"{n:,}") for n in seq_lens]
    return Axis("tokens", min(seq_lens) / 1.12, max(seq_lens) * 1.12, ticks, log=True)


def linear_axis(title: str, values: Sequence[float], *, zero: bool = False) -> Axis:
    """From the smallest to the largest value, rounded outward to about five steps."""
    low, high = (0.0 if zero else min(values)), max(values)
    raw = (high - low or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    if zero and float(high).is_integer():
        step = max(1.0, step)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [
        (i * step, f"{round(i * step, 10):,g}") for i in range(first, max(last, first + 1) + 1)
    ]
    return Axis(
        title,
        ticks[0][0],
        high if zero else ticks[-1][0],
        [t for t in ticks if not zero or t[0] <= high],
    )


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """Powers of ten, or 1 2 5 where few of them lie between."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [m * 10.0**e for e in powers for m in (1, 2, 5)]
    low, high = max(m for m in marks if m <= low), min(m for m in marks if m >= high)
    inside = [m for m in marks if low <= m <= high]
    if len(inside) > 7:
        inside = [m for m in inside if math.log10(m).is_integer()]
    if len(inside) < 3:
        inside = sorted({low, high, *(low + (high - low) * i / 4 for i in range(1, 4))})
    return Axis(title, low, high, [(m, _short_number(m)) for m in inside], log=True)


def _short_number(x: float) -> str:
    if x >= 1e9:
        return f"{x:.0e}".replace("e+", "e")
    return f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x >= 1e4 else f"{x:,.6g}"
