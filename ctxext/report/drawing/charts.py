"""Small inline SVG charts: lines with whiskers or bands, and dots with whiskers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree as ET

from ctxext.report.drawing.axes import Axis
from ctxext.report.drawing.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    ReferenceLine,
    Style,
    add_group,
    add_path,
    add_text,
    chart_root,
    draw_axes,
    draw_marker,
    draw_reference_lines,
    polyline,
    swatch,
    to_text,
)
from ctxext.report.table import Table

LABEL_GAP = 13
"""Pixels between the labels at the ends of lines."""
LABEL_LENGTH = 17
"""Characters of such a label; longer ones are cut."""


class Point(NamedTuple):
    """A value with its bounds, if it has any."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A line of a chart: `label` is at its end, `name` in the legend; `points` are sorted by x."""

    label: str
    name: str
    style: Style
    points: Sequence[Point]
    interval: Literal["whisker", "band", "none"] = "whisker"
    markers: bool = True
    shaded: frozenset[float] = frozenset()
    """The x of points under which the line is broad."""


@dataclass(frozen=True)
class Dot:
    """A row of a dot chart: a value with its interval, and an arrow to the side it is open to."""

    name: str
    style: Style
    value: float
    low: float
    high: float
    open_to: Literal["", "<", ">"] = ""


@dataclass(frozen=True)
class Chart:
    """A chart of the page: the drawing, its legend, and the numbers that it shows as a table."""

    title: str
    description: str
    svg: str
    numbers: Table[Any]
    legend: Sequence[tuple[str, str]] = ()
    """(swatch, name) of every line."""


def legend_of(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """(swatch, name) of every line."""
    return [(swatch(line.style), line.name) for line in lines]


def line_chart(
    title: str,
    description: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    key: str,
    references: Sequence[ReferenceLine] = (),
    height: int = 290,
) -> str:
    """The drawing as SVG; `key` makes its ids unique on the page."""
    right = WIDTH - RIGHT
    bottom = height - BOTTOM
    root = chart_root(title, description, key, height)
    draw_axes(root, x, y, right, bottom)
    names = draw_reference_lines(root, references, x, y, right, bottom)
    ends = []
    for number, line in enumerate(lines):
        if not line.points:
            continue
        shift = 0.0
        if line.interval == "whisker":  # side by side instead of on top of each other
            shift = 2.5 * (number - (len(lines) - 1) / 2)
        placed = [
            _Placed(
                point.x,
                x.at(point.x, LEFT, right) + shift,
                y.at(point.y, bottom, TOP),
                None if point.low is None else y.at(point.low, bottom, TOP),
                None if point.high is None else y.at(point.high, bottom, TOP),
            )
            for point in line.points
        ]
        _draw_line(add_group(root, line.style.css), line, placed)
        ends.append((placed[-1].px, placed[-1].py, line))
    root.append(names)
    _draw_labels(root, ends, right, bottom)
    return to_text(root)


class _Placed(NamedTuple):
    """A point of a line in pixels."""

    x: float
    px: float
    py: float
    low: float | None
    high: float | None


def _draw_line(group: ET.Element, line: Line, points: Sequence[_Placed]) -> None:
    bounded = [
        (point.px, point.low, point.high)
        for point in points
        if point.low is not None and point.high is not None
    ]
    if line.interval == "band" and len(bounded) > 1:
        upper = [(px, high) for px, _, high in bounded]
        lower = [(px, low) for px, low, _ in reversed(bounded)]
        add_path(group, "band", f"{polyline([*upper, *lower])}Z")
    shades = [(point.x in line.shaded, (point.px, point.py)) for point in points]
    for shaded, run in groupby(shades, itemgetter(0)):
        if shaded:
            stretch = [at for _, at in run]
            # The last point twice, so that a single one is drawn as a dot.
            add_path(group, "shade", polyline([*stretch, stretch[-1]]))
    add_path(group, "line", polyline((point.px, point.py) for point in points))
    if line.interval == "whisker":
        for px, low, high in bounded:
            add_path(group, "whisker", f"M{px:g} {low:g}V{high:g}")
    if line.markers:
        for point in points:
            draw_marker(group, line.style, point.px, point.py)


def _draw_labels(
    root: ET.Element, ends: Sequence[tuple[float, float, Line]], right: float, bottom: float
) -> None:
    """A label at the end of each line, with a thread to it where labels had to be moved apart."""
    ends = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _ in ends:
        places.append(max(y, places[-1] + LABEL_GAP) if places else y)
    if places and places[-1] > bottom:
        limit = bottom
        for i in reversed(range(len(places))):
            places[i] = min(places[i], limit)
            limit = places[i] - LABEL_GAP
    for (x, y, line), place in zip(ends, places, strict=True):
        group = add_group(root, f"{line.style.css} end")
        add_path(group, "thread", f"M{x + 5:g} {y:g}L{right + 9} {place:g}")
        label = line.label
        if len(label) > LABEL_LENGTH:
            label = label[: LABEL_LENGTH - 1] + "\u2026"
        add_text(group, label, right + 12, f"{place + 4:g}")


def dot_chart(
    title: str,
    description: str,
    dots: Sequence[Dot],
    x: Axis,
    *,
    key: str,
    references: Sequence[ReferenceLine] = (),
) -> str:
    """A row per dot, with a whisker from its low to its high bound."""
    step = 38
    left = 16
    right = WIDTH - 16
    bottom = TOP + step * len(dots) + 6
    root = chart_root(title, description, key, bottom + BOTTOM)
    draw_axes(root, x, Axis("", 0, 1, ()), right, bottom, left=left)
    root.append(draw_reference_lines(root, references, x, x, right, bottom, left=left))
    for number, dot in enumerate(dots):
        top = TOP + step * number + 18
        y = top + 8
        low, value, high = (x.at(v, left, right) for v in (dot.low, dot.value, dot.high))
        group = add_group(root, dot.style.css)
        add_text(group, dot.name, left + 4, top - 5, css="dot-label")
        add_path(group, "whisker wide", f"M{low:g} {y}H{high:g}")
        if dot.open_to:
            end, turn = (low, -1) if dot.open_to == "<" else (high, 1)
            arrow = f"M{end:g} {y}h{10 * turn}m{-4 * turn}-4l{4 * turn} 4l{-4 * turn} 4"
            add_path(group, "whisker wide", arrow)
        draw_marker(group, dot.style, value, y)
    return to_text(root)
