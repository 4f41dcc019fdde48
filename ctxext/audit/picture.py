"""The picture of an audit: which keys each query sees, by piece."""

from collections.abc import Sequence
from xml.etree import ElementTree as ET

import numpy as np

from ctxext.audit import Audit
from ctxext.audit.subject import Runs, runs, runs_text
from ctxext.audit.visibility import Row, Visibility
from ctxext.report.drawing.axes import Axis, linear_axis
from ctxext.report.drawing.charts import Chart
from ctxext.report.drawing.svg import (
    BOTTOM,
    LEFT,
    TOP,
    ReferenceLine,
    add_group,
    add_path,
    add_text,
    chart_root,
    draw_axes,
    draw_reference_lines,
    to_text,
)
from ctxext.report.table import Table, table_of_texts

ROWS = 120
"""Queries that are drawn, as strips."""
SIDE = 300
"""Pixels of a panel."""
RIGHT = LEFT + SIDE
PANELS = 4
PIECES = ("k1", "k2", "k5", "k3", "k10", "k9")
"""Classes of chart.css for the pieces, in their order."""
FUTURE = "k7"
TWICE = "k4"


def picture(audit: Audit) -> Chart:
    """Queries from top to bottom, keys from left to right, a colour for each piece.

    Keys at rotary distances that pre-training did not have are paler.
    """
    name = audit.subject.name
    title = f"What {name} sees at {audit.subject.seq_len:,} tokens"
    panels = audit.visibility[:PANELS]
    description = _description(audit, len(audit.visibility) - len(panels))
    step = TOP + SIDE + BOTTOM + 8
    root = chart_root(title, description, "audit", step * len(panels))
    for number, visibility in enumerate(panels):
        panel = add_group(root, "panel")
        panel.set("transform", f"translate(0 {number * step})")
        _draw(panel, audit, visibility)
    _draw_legend(root, audit)
    return Chart(title, description, to_text(root), rows_table(audit))


def shown_queries(audit: Audit, visibility: Visibility) -> list[int]:
    """The queries of tables: ends and quarters of the text, the window, and where flaws begin."""
    T, window = audit.subject.seq_len, audit.subject.window
    chosen = {0, T // 4, T // 2, T - 1, window - 1, window}
    for flaw in (visibility.future, visibility.twice, ~visibility.itself):
        chosen |= set(visibility.queries[flaw][:1].tolist())
    return sorted(query for query in chosen if 0 <= query < T)


def rows_table(audit: Audit) -> Table[Sequence[str]]:
    """What some queries see, and how their softmax is shared out."""
    several = len(audit.visibility) > 1
    numbers: list[int] = []
    if any(len(visibility.view.pieces) > 1 for visibility in audit.visibility):
        numbers = list(range(1, len(audit.subject.pieces) + 1))
    pieces = [f"in piece {number}" for number in numbers]
    header = ["query", "keys", *pieces, "visible", "rotary distances", "most keys at one"]
    lines = []
    for visibility in audit.visibility:
        for query in shown_queries(audit, visibility):
            row = visibility.row(query)
            line = [f"{query:,}", f"{sum(row.keys):,}"]
            shares = {
                number: _share(count, row)
                for number, count in zip(visibility.view.numbers, row.keys, strict=True)
            }
            line += [shares.get(number, "") for number in numbers]
            line += [_visible(row), _distances(row), f"{row.largest_share[1]:,}"]
            if several:
                line[0] += f" ({visibility.view.name})"
            lines.append(line)
    return table_of_texts("What queries see, and the keys that share their softmax", header, lines)


def _share(count: int, row: Row) -> str:
    return f"{count:,} ({count / max(1, sum(row.keys)):.0%})"


def _visible(row: Row) -> str:
    """The keys of all pieces, adjacent runs joined."""
    joined: Runs = []
    for first, last in sorted(run for piece in row.pieces for run in piece):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return runs_text(joined)


def _distances(row: Row) -> str:
    used = [distances for distances in row.distances if distances is not None]
    if not used:
        return "none"
    return f"{min(low for low, _ in used):,.6g} to {max(high for _, high in used):,.6g}"


def _draw(panel: ET.Element, audit: Audit, visibility: Visibility) -> None:
    T, window = audit.subject.seq_len, audit.subject.window
    bottom = TOP + SIDE
    ticks = linear_axis("key", [0, T], zero=True).ticks
    x = Axis("key", 0, T, ticks)
    y = Axis("query", T, 0, ticks)
    draw_axes(panel, x, y, RIGHT, bottom)
    if visibility.view.name:
        add_text(panel, visibility.view.name, RIGHT, 11, css="y-title", anchor="end")
    keys = np.arange(T)
    edges = np.unique(np.linspace(0, T, min(T, ROWS) + 1).round().astype(int))
    paths: dict[tuple[str, str], list[str]] = {}
    for first, stop in zip(edges, edges[1:], strict=False):
        at = np.array([stop - 1])
        top, low = y.at(first, bottom, TOP), y.at(stop, bottom, TOP)
        seen = [piece[0] for piece in visibility.view.visible(at, keys)]
        distances = [piece[0] for piece in visibility.view.distances(at, keys)]
        later = keys >= stop
        strips = []
        of_pieces = zip(visibility.view.numbers, seen, distances, strict=True)
        for number, visible, distance in of_pieces:
            is_new = (distance > window - 1) & visibility.view.kind.rotates
            css = _colour(number)
            strips += [(css, "cells", visible & ~is_new), (css, "cells new", visible & is_new)]
        strips += [(TWICE, "cells", np.sum(seen, axis=0) > 1)]
        strips += [(FUTURE, "cells", np.any(seen, axis=0) & later)]
        for css, cells, marked in strips:
            for run_first, run_last in runs(marked):
                left, right = x.at(run_first, LEFT, RIGHT), x.at(run_last + 1, LEFT, RIGHT)
                path = f"M{left:g} {top:g}H{right:g}V{low:g}H{left:g}Z"
                paths.setdefault((css, cells), []).append(path)
    for (css, cells), of_cells in paths.items():
        add_path(add_group(panel, css), cells, "".join(of_cells))
    if window < T:
        lines = [ReferenceLine(window, "the window")]
        panel.append(draw_reference_lines(panel, lines, x, y, RIGHT, bottom))


def _draw_legend(root: ET.Element, audit: Audit) -> None:
    """The colours to the right of the first panel."""
    numbers = range(1, len(audit.subject.pieces) + 1)
    names = [(_colour(number), f"piece {number}") for number in numbers]
    kinds = {finding.kind for finding in audit.findings}
    if "twice" in kinds:
        names.append((TWICE, "counted twice"))
    if "future" in kinds:
        names.append((FUTURE, "the future"))
    left = RIGHT + 16
    for number, (css, name) in enumerate(names):
        top = TOP + 20 * number
        add_path(add_group(root, css), "cells", f"M{left} {top}h14v12h-14Z")
        add_text(root, name, left + 20, top + 10)


def _colour(piece: int) -> str:
    return PIECES[(piece - 1) % len(PIECES)]


def _description(audit: Audit, left_out: int) -> str:
    found = " ".join(finding.sentence for finding in audit.findings) or "No findings."
    text = "Queries from top to bottom, keys from left to right, a colour for each piece of the "
    text += "softmax; paler where the rotary distance is one that pre-training did not have. "
    if left_out:
        text += f"{left_out} more kinds of layers or heads are not drawn. "
    return text + found
