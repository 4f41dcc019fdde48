"""Elements that all SVG charts share. Colours are classes of chart.css."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from ctxext.report.drawing.axes import Axis
from ctxext.terminal import printable_line

# Size of a chart and its margins, in pixels.
WIDTH = 460
LEFT = 46
RIGHT = 118
TOP = 30
BOTTOM = 40
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
"""Circle, square, triangle, diamond, triangle down, plus and hexagon around the origin."""


class Style(NamedTuple):
    """How a line looks: colour and marker by `index`; dashes and hollow markers if `dashed`."""

    index: int
    dashed: bool = False
    control: bool = False
    """Grey dots: not a result, but what results are compared with."""

    @property
    def css(self) -> str:
        if self.control:
            return "control dashed"
        return f"c{self.index % NUM_COLOURS}{' dashed' * self.dashed}"


class ReferenceLine(NamedTuple):
    """A dotted line at `value` of the x axis (`upright`) or of the y axis, with its name."""

    value: float
    text: str
    upright: bool = True


def chart_root(title: str, description: str, key: str, height: float) -> ET.Element:
    """The <svg> element; `key` makes the ids of its title and description unique on a page."""
    root = ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH} {height:g}",
            "class": "chart",
            "role": "img",
            "aria-labelledby": f"{key}-title {key}-desc",
        },
    )
    ET.SubElement(root, "title", {"id": f"{key}-title"}).text = printable_line(title)
    ET.SubElement(root, "desc", {"id": f"{key}-desc"}).text = printable_line(description)
    return root


def add_group(parent: ET.Element, css: str) -> ET.Element:
    """Append a <g> of a class."""
    return ET.SubElement(parent, "g", {"class": css})


def add_path(parent: ET.Element, css: str, d: str) -> None:
    """Append a <path>."""
    ET.SubElement(parent, "path", {"class": css, "d": d} if css else {"d": d})


def add_text(
    parent: ET.Element,
    text: str,
    x: float | str,
    y: float | str,
    *,
    css: str = "",
    anchor: str = "",
) -> None:
    """A text at a place; `anchor` is "middle" or "end" where that is not its start."""
    attributes = {"class": css, "x": str(x), "y": str(y), "text-anchor": anchor}
    element = ET.SubElement(parent, "text", {k: v for k, v in attributes.items() if v})
    element.text = printable_line(text)


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """The path through points."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def draw_axes(
    root: ET.Element, x: Axis, y: Axis, right: float, bottom: float, *, left: float = LEFT
) -> None:
    """Grid lines at the ticks of y, ticks below for x, and both titles."""
    group = add_group(root, "axes")
    for value, label in y.ticks:
        at = y.at(value, bottom, TOP)
        add_path(group, "grid", f"M{left} {at:g}H{right}")
        add_text(group, label, left - 6, f"{at + 4:g}", anchor="end")
    add_path(group, "axis", f"M{left} {bottom}H{right}")
    for value, label in x.ticks:
        at = x.at(value, left, right)
        add_path(group, "axis", f"M{at:g} {bottom}v4")
        add_text(group, label, f"{at:g}", bottom + 17, anchor="middle")
    add_text(group, x.title, f"{(left + right) / 2:g}", bottom + 34, anchor="middle")
    if y.title:
        add_text(group, y.title, 2, 11, css="y-title")


def draw_reference_lines(
    root: ET.Element,
    lines: Sequence[ReferenceLine],
    x: Axis,
    y: Axis,
    right: float,
    bottom: float,
    *,
    left: float = LEFT,
) -> ET.Element:
    """Draw the lines, and return the group of their names, to be appended on top of all else.

    A line beyond the end of its axis is not drawn: an arrow with its value points to it.
    """
    names = ET.Element("g", {"class": "mark"})
    for line in lines:
        axis = x if line.upright else y
        if not axis.low <= line.value <= axis.high:
            _name_what_is_outside(names, line, axis, left, right, bottom)
            continue
        group = add_group(root, "mark")
        if line.upright:
            at = x.at(line.value, left, right)
            add_path(group, "", f"M{at:g} {TOP}V{bottom}")
            add_text(names, line.text, f"{at:g}", TOP - 4, css="mark-label", anchor="middle")
        else:
            at = y.at(line.value, bottom, TOP)
            add_path(group, "", f"M{left} {at:g}H{right}")
            # Below the line near the top, where the names of upright lines are.
            text_y = at - 4 if at > TOP + 12 else at + 13
            add_text(names, line.text, left + 3, f"{text_y:g}", css="mark-label")
    return names


def _name_what_is_outside(
    names: ET.Element, line: ReferenceLine, axis: Axis, left: float, right: float, bottom: float
) -> None:
    beyond = line.value > axis.high
    text = f"{line.text}: {line.value:,.4g}"
    if line.upright:
        text = f"{text} \u2192" if beyond else f"\u2190 {text}"
        x, anchor = (right, "end") if beyond else (left, "")
        add_text(names, text, f"{x:g}", TOP - 4, css="mark-label", anchor=anchor)
    else:
        arrow, y = ("\u2191", TOP + 13) if beyond else ("\u2193", bottom - 4)
        text = f"{text} {arrow}"
        add_text(names, text, left + 3, f"{y:g}", css="mark-label")


def draw_marker(parent: ET.Element, style: Style, x: float, y: float) -> None:
    """Draw the marker of a style around a place."""
    shape = SHAPES[style.index % len(SHAPES)]
    at = {"class": "marker", "d": shape, "transform": f"translate({x:g} {y:g})"}
    ET.SubElement(parent, "path", at)


def swatch(style: Style) -> str:
    """A short stretch of a line with its marker, for a legend."""
    size = {"viewBox": "0 0 34 14", "class": f"swatch {style.css}", "aria-hidden": "true"}
    root = ET.Element("svg", size)
    add_path(root, "line", "M1 7H33")
    draw_marker(root, style, 17, 7)
    return to_text(root)


def colour_swatch(css: str) -> str:
    """A filled rectangle, for a legend of bars."""
    root = ET.Element(
        "svg", {"viewBox": "0 0 34 14", "class": f"swatch {css}", "aria-hidden": "true"}
    )
    ET.SubElement(root, "path", {"d": "M4 2H30V12H4Z"})
    return to_text(root)


def to_text(root: ET.Element) -> str:
    """The element as text, escaped."""
    return ET.tostring(root, encoding="unicode")


def standalone(svg: str, style: str) -> str:
    """A drawing as its own file, with the style sheet that it needs."""
    root = ET.fromstring(svg)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    sheet = ET.Element("style")
    sheet.text = f"{style}svg {{ background: var(--bg); }}\n"
    root.insert(2, sheet)  # after its title and description
    return to_text(root) + "\n"
