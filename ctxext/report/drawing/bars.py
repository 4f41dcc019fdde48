"""Bars as inline SVG: shares of a whole, and small histograms. Fills are classes of chart.css."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from ctxext.report.drawing.charts import WIDTH, Axis, draw_axes, root_of, to_text

LABEL, END, BOTTOM = 62, WIDTH - 10, 40


class Bar(NamedTuple):
    """`parts`: (class, share of the whole) from left to right."""

    label: str
    parts: Sequence[tuple[str, float]]


def stacked(
    title: str, description: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, key: str
) -> str:
    """Bars of full length in named groups; shares that have room carry their percent."""
    step, head = 19, 24
    height = sum(head + step * len(bars) for _, bars in groups) + 8
    root = root_of(title, description, key, height + BOTTOM)
    x = Axis("% of the questions asked", 0, 100, [(v, str(v)) for v in (0, 25, 50, 75, 100)])
    draw_axes(root, x, Axis("", 0, 1, ()), END, height, left=LABEL)
    top = 0
    for name, bars in groups:
        ET.SubElement(
            root, "text", {"class": "dot-label", "x": "2", "y": str(top + 17)}
        ).text = name
        top += head
        for bar in bars:
            at = {
                "class": "bar-label",
                "x": str(LABEL - 6),
                "y": str(top + 12),
                "text-anchor": "end",
            }
            ET.SubElement(root, "text", at).text = bar.label
            left = 0.0
            for css, share in bar.parts:
                start, end = (x.at(100 * v, LABEL, END) for v in (left, left + share))
                left += share
                if share <= 0:
                    continue
                group = ET.SubElement(root, "g", {"class": css})
                ET.SubElement(
                    group,
                    "path",
                    {"class": "bar", "d": f"M{start:g} {top}H{end:g}V{top + 16}H{start:g}Z"},
                )
                if end - start >= 22:
                    place = {"class": "share", "x": f"{(start + end) / 2:g}", "y": str(top + 12)}
                    ET.SubElement(group, "text", place).text = f"{100 * share:.0f}"
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
    """A small histogram per row over one axis; each is as high as its fullest bin."""
    step, full = 40, 28
    height = step * len(rows) + 8
    root = root_of(title, description, key, height + BOTTOM)
    draw_axes(root, x, Axis("", 0, 1, ()), END, height, left=LABEL)
    width = (END - LABEL) / bins
    for number, (label, values) in enumerate(rows):
        base = step * (number + 1)
        at = {"class": "bar-label", "x": str(LABEL - 6), "y": str(base - 2), "text-anchor": "end"}
        ET.SubElement(root, "text", at).text = label
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int((x.at(value, LABEL, END) - LABEL) / width))] += 1
        group = ET.SubElement(root, "g", {"class": "c1"})
        for i, count in enumerate(counts):
            if count:
                start, high = LABEL + i * width, full * count / max(counts)
                shape = f"M{start:g} {base}v{-high:.3g}h{width:g}v{high:.3g}Z"
                ET.SubElement(group, "path", {"class": "bar", "d": shape})
        ET.SubElement(root, "path", {"class": "grid", "d": f"M{LABEL} {base}H{END}"})
    return to_text(root)
