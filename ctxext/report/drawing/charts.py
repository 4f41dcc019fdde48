"""Small inline SVG charts: lines with whiskers or bands, and dots with whiskers. Colours are classes of chart.css."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple
from xml.etree import ElementTree as ET

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 460, 46, 118, 30, 40
GAP = 13
"""Pixels between direct labels."""
NUM_COLOURS = 8
SHAPES = (
    "M0-4.2A4.2 4.2 0 1 1 0 4.2A4.2 4.2 0 1 1 0-4.2Z",
    "M-4-4H4V4H-4Z",
    "M0-5L5 4H-5Z",
    "M0-5.4L5.4 0 0 5.4-5.4 0Z",
    "M0 5L5-4H-5Z",
    "M-5-1.6H-1.6V-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5Z",
    "M-5 0L-2.5-4.5H2.5L5 0 2.5 4.5H-2.5Z",
)
"""Circle, square, triangle, diamond, triangle down, plus, hexagon, around the origin."""


class Style(NamedTuple):
    """How a line looks: colour and marker by method, dashes and hollow markers for what was not trained."""

    index: int
    dashed: bool = False
    control: bool = False
    """Grey dots: no variant, but what variants are held against."""

    @property
    def css(self) -> str:
        return (
            "control dashed"
            if self.control
            else f"c{self.index % NUM_COLOURS}{' dashed' * self.dashed}"
        )


class Point(NamedTuple):
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """`label` stands at its end, `name` in the legend; `points` in the order of x."""

    label: str
    name: str
    style: Style
    points: Sequence[Point]
    interval: str = "whisker"
    """"whisker", "band" or "none"."""
    markers: bool = True
    shaded: frozenset[float] = frozenset()
    """The x of points under which the line is broad."""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`; `log` for powers of two or ten, all values positive."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def at(self, value: float, start: float, end: float) -> float:
        """The pixel of a value; what lies outside is drawn at the edge."""
        ends = self.low, self.high, max(value, 1e-300) if self.log else value
        low, high, x = map(math.log, ends) if self.log else ends
        share = min(1.0, max(0.0, (x - low) / (high - low)))
        return round(start + share * (end - start), 1)


class Mark(NamedTuple):
    """A reference line: at `value` of the x axis (`upright`) or of the y axis, with its name."""

    value: float
    text: str
    upright: bool = True


@dataclass(frozen=True)
class Chart:
    """What the page shows of a chart: the drawing, its legend, and the same as a table."""

    title: str
    description: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[tuple[str, str]] = ()
    """(swatch, name) of every line."""
    note: str = ""


def swatch(style: Style) -> str:
    """A piece of the line with its marker, for a legend."""
    root = ET.Element(
        "svg", {"viewBox": "0 0 34 14", "class": f"swatch {style.css}", "aria-hidden": "true"}
    )
    ET.SubElement(root, "path", {"class": "line", "d": "M1 7H33"})
    draw_marker(root, style, 17, 7)
    return to_text(root)


def line_chart(
    title: str,
    description: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    key: str,
    marks: Sequence[Mark] = (),
    height: int = 290,
) -> str:
    """The drawing; `key` makes its ids unique on the page."""
    right, bottom = WIDTH - RIGHT, height - BOTTOM
    root = root_of(title, description, key, height)
    draw_axes(root, x, y, right, bottom)
    texts = [draw_mark(root, mark, x, y, right, bottom) for mark in marks]
    ends = []
    for number, line in enumerate(lines):
        if not line.points:
            continue
        group = ET.SubElement(root, "g", {"class": line.style.css})
        shift = 2.5 * (number - (len(lines) - 1) / 2) if line.interval == "whisker" else 0
        at = [(x.at(p.x, LEFT, right) + shift, y.at(p.y, bottom, TOP), p) for p in line.points]
        bounded = [
            (px, y.at(p.low, bottom, TOP), y.at(p.high, bottom, TOP))
            for px, _, p in at
            if p.low is not None and p.high is not None
        ]
        if line.interval == "band" and len(bounded) > 1:
            around = [(px, high) for px, _, high in bounded] + [
                (px, low) for px, low, _ in reversed(bounded)
            ]
            ET.SubElement(group, "path", {"class": "band", "d": f"{_path(around)}Z"})
        for shade, points in groupby(
            [(p.x in line.shaded, px, py) for px, py, p in at], itemgetter(0)
        ):
            if shade:
                drawn = [(px, py) for _, px, py in points]
                ET.SubElement(
                    group, "path", {"class": "shade", "d": _path([*drawn, drawn[-1]])}
                )  # a dot, if alone
        ET.SubElement(group, "path", {"class": "line", "d": _path([(px, py) for px, py, _ in at])})
        for px, low, high in bounded if line.interval == "whisker" else ():
            ET.SubElement(group, "path", {"class": "whisker", "d": f"M{px:g} {low:g}V{high:g}"})
        for px, py, _ in at if line.markers else ():
            draw_marker(group, line.style, px, py)
        ends.append((at[-1][0], at[-1][1], line))
    root.extend(texts)  # above the lines
    _labels(root, ends, right, bottom)
    return to_text(root)


def standalone(svg: str, style: str) -> str:
    """A drawing as a file of its own, with the style sheet that it needs."""
    root = ET.fromstring(svg)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    sheet = ET.Element("style")
    sheet.text = f"{style}svg {{ background: var(--bg); }}\n"
    root.insert(2, sheet)  # after its title and description
    return to_text(root) + "\n"


def dot_chart(
    title: str,
    description: str,
    dots: Sequence[tuple[Line, str]],
    x: Axis,
    *,
    key: str,
    marks: Sequence[Mark] = (),
) -> str:
    """A row per line: the x of its one point with a whisker, and an arrow if it is open to that side ("<" or ">")."""
    step, start, right = 38, 16, WIDTH - 16
    bottom = TOP + step * len(dots) + 6
    root = root_of(title, description, key, bottom + BOTTOM)
    draw_axes(root, x, Axis("", 0, 1, ()), right, bottom, left=start)
    root.extend([draw_mark(root, mark, x, x, right, bottom, left=start) for mark in marks])
    for number, (line, open_to) in enumerate(dots):
        (point,) = line.points
        top = TOP + step * number + 18
        group = ET.SubElement(root, "g", {"class": line.style.css})
        ET.SubElement(
            group, "text", {"class": "dot-label", "x": str(start + 4), "y": str(top - 5)}
        ).text = line.name
        low, value, high = (
            x.at(v, start, right) for v in (point.low or 0, point.x, point.high or 0)
        )
        y = top + 8
        ET.SubElement(group, "path", {"class": "whisker wide", "d": f"M{low:g} {y}H{high:g}"})
        if open_to:
            end, turn = (low, -1) if open_to == "<" else (high, 1)
            head = f"M{end:g} {y}h{10 * turn}m{-4 * turn}-4l{4 * turn} 4l{-4 * turn} 4"
            ET.SubElement(group, "path", {"class": "whisker wide", "d": head})
        draw_marker(group, line.style, value, y)
    return to_text(root)


def root_of(title: str, description: str, key: str, height: float) -> ET.Element:
    names = {"role": "img", "aria-labelledby": f"{key}-title {key}-desc"}
    root = ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "class": "chart", **names})
    ET.SubElement(root, "title", {"id": f"{key}-title"}).text = title
    ET.SubElement(root, "desc", {"id": f"{key}-desc"}).text = description
    return root


def draw_axes(
    root: ET.Element, x: Axis, y: Axis, right: float, bottom: float, *, left: float = LEFT
) -> None:
    group = ET.SubElement(root, "g", {"class": "axes"})
    for value, text in y.ticks:
        at = y.at(value, bottom, TOP)
        ET.SubElement(group, "path", {"class": "grid", "d": f"M{left} {at:g}H{right}"})
        ET.SubElement(
            group, "text", {"x": str(left - 6), "y": f"{at + 4:g}", "text-anchor": "end"}
        ).text = text
    ET.SubElement(group, "path", {"class": "axis", "d": f"M{left} {bottom}H{right}"})
    for value, text in x.ticks:
        at = x.at(value, left, right)
        ET.SubElement(group, "path", {"class": "axis", "d": f"M{at:g} {bottom}v4"})
        ET.SubElement(
            group, "text", {"x": f"{at:g}", "y": str(bottom + 17), "text-anchor": "middle"}
        ).text = text
    middle = f"{(left + right) / 2:g}"
    ET.SubElement(
        group, "text", {"x": middle, "y": str(bottom + 34), "text-anchor": "middle"}
    ).text = x.title
    if y.title:
        ET.SubElement(group, "text", {"class": "y-title", "x": "2", "y": "11"}).text = y.title


def draw_mark(
    root: ET.Element,
    mark: Mark,
    x: Axis,
    y: Axis,
    right: float,
    bottom: float,
    *,
    left: float = LEFT,
) -> ET.Element:
    """Draws the line and returns its text, which is to lie above all else."""
    group = ET.SubElement(root, "g", {"class": "mark"})
    if mark.upright:
        at = x.at(mark.value, left, right)
        ET.SubElement(group, "path", {"d": f"M{at:g} {TOP}V{bottom}"})
        place = {"x": f"{at:g}", "y": str(TOP - 4), "text-anchor": "middle"}
    else:
        at = y.at(mark.value, bottom, TOP)
        ET.SubElement(group, "path", {"d": f"M{left} {at:g}H{right}"})
        place = {
            "x": str(left + 3),
            "y": f"{at - 4 if at > TOP + 12 else at + 13:g}",
        }  # not on upright ones' names
    text = ET.Element("text", {"class": "mark-label", **place})
    text.text = mark.text
    return text


def draw_marker(parent: ET.Element, style: Style, x: float, y: float) -> None:
    shape = SHAPES[style.index % len(SHAPES)]
    ET.SubElement(
        parent, "path", {"class": "marker", "d": shape, "transform": f"translate({x:g} {y:g})"}
    )


def _labels(
    root: ET.Element, ends: Sequence[tuple[float, float, Line]], right: float, bottom: float
) -> None:
    """A label at the end of each line, moved apart where they would touch, with a thread to its line."""
    ends = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, y, _ in ends:
        places.append(max(y, places[-1] + GAP) if places else y)
    over = max(0.0, places[-1] - bottom) if places else 0.0
    for i in range(len(places) - 1, -1, -1):
        places[i] = (
            min(places[i], (bottom if i == len(places) - 1 else places[i + 1] - GAP))
            if over
            else places[i]
        )
    for (x, y, line), place in zip(ends, places, strict=True):
        group = ET.SubElement(root, "g", {"class": f"{line.style.css} end"})
        ET.SubElement(
            group, "path", {"class": "thread", "d": f"M{x + 5:g} {y:g}L{right + 9} {place:g}"}
        )
        ET.SubElement(group, "text", {"x": str(right + 12), "y": f"{place + 4:g}"}).text = _short(
            line.label
        )


def _short(text: str, most: int = 17) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def to_text(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")
