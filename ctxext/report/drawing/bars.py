"""Bars as inline SVG: shares of a whole, and small histograms. Fills are classes of chart.css."""

from collections.abc import Sequence
from typing import NamedTuple

from ctxext.report.drawing.axes import Axis, percent_axis
from ctxext.report.drawing.svg import (
    BOTTOM,
    WIDTH,
    add_group,
    add_path,
    add_text,
    chart_root,
    draw_axes,
    to_text,
)

LABEL = 62
"""Pixels of the labels to the left of the bars."""
END = WIDTH - 10


class Bar(NamedTuple):
    """A bar of full length; `parts` are (class, share of the whole) from left to right."""

    label: str
    parts: Sequence[tuple[str, float]]


def stacked_bars(
    title: str, description: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, key: str
) -> str:
    """Bars in named groups; a part that is wide enough carries its percentage."""
    step = 19
    head = 24
    height = sum(head + step * len(bars) for _, bars in groups) + 8
    root = chart_root(title, description, key, height + BOTTOM)
    x = percent_axis("% of the questions asked")
    draw_axes(root, x, Axis("", 0, 1, ()), END, height, left=LABEL)
    top = 0
    for name, bars in groups:
        add_text(root, name, 2, top + 17, css="dot-label")
        top += head
        for bar in bars:
            add_text(root, bar.label, LABEL - 6, top + 12, css="bar-label", anchor="end")
            left = 0.0
            for css, share in bar.parts:
                start = x.at(100 * left, LABEL, END)
                left += share
                end = x.at(100 * left, LABEL, END)
                if share <= 0:
                    continue
                group = add_group(root, css)
                add_path(group, "bar", f"M{start:g} {top}H{end:g}V{top + 16}H{start:g}Z")
                if end - start >= 22:
                    middle = f"{(start + end) / 2:g}"
                    add_text(group, f"{100 * share:.0f}", middle, top + 12, css="share")
            top += step
    return to_text(root)


def histograms(
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    x: Axis,
    *,
    key: str,
    bins: int = 40,
) -> str:
    """A small histogram per named row of values; each is as high as its fullest bin."""
    step = 40
    full = 28
    height = step * len(rows) + 8
    root = chart_root(title, description, key, height + BOTTOM)
    draw_axes(root, x, Axis("", 0, 1, ()), END, height, left=LABEL)
    width = (END - LABEL) / bins
    for number, (label, values) in enumerate(rows):
        base = step * (number + 1)
        add_text(root, label, LABEL - 6, base - 2, css="bar-label", anchor="end")
        counts = [0] * bins
        for value in values:
            index = int((x.at(value, LABEL, END) - LABEL) / width)
            counts[min(bins - 1, index)] += 1
        group = add_group(root, "c1")
        for i, count in enumerate(counts):
            if count:
                start = LABEL + i * width
                high = full * count / max(counts)
                add_path(group, "bar", f"M{start:g} {base}v{-high:.3g}h{width:g}v{high:.3g}Z")
        add_path(root, "grid", f"M{LABEL} {base}H{END}")
    return to_text(root)
