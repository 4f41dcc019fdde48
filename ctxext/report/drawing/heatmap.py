"""Heatmaps as tables: k/n by length and depth or distance, and the paired difference of two variants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ctxext.report.analysis import controls
from ctxext.report.analysis.comparisons import Comparison, compare, family, pairs
from ctxext.report.analysis.records import (
    Question,
    Row,
    Variant,
    distance_bin,
    group,
    share,
    signed,
)
from ctxext.report.analysis.study import Study
from ctxext.report.drawing.colours import diverging, sequential

FEW = 20
"""Below this many questions a cell is hatched: its interval is too wide to say much."""


@dataclass(frozen=True)
class Cell:
    """One coloured cell: what stands in it large and small, and what it is called in words."""

    text: str
    small: str
    background: str
    colour: str
    hatched: bool
    marked: bool = False


@dataclass(frozen=True)
class Heat:
    """A table of cells; None where nothing was asked."""

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    note: str = ""
    below: Sequence[tuple[str, Sequence[Cell | None]]] = ()
    """What the rows are held against."""


def by_depth(study: Study, variant: Variant) -> Heat:
    """Length x depth asked, with the variant's floor and ceiling and the base at home below."""
    question, home = study.question, study.home(variant)
    heat = _rates(question, variant, "depth", lambda row: row["depth"], depth_text)
    lengths = sorted({row["seq_len"] for row in question.of(variant)})
    below = [
        (name, [controls.of(question, variant.series, kind, n) for n in lengths])
        for kind, name in controls.CONTROLS.items()
    ]
    if home is None or home.variant != variant:
        below.append(
            (controls.HOME, [home.rows if home and n == variant.window else [] for n in lengths])
        )
    lines = [(name, [_rate_cell(rows) if rows else None for rows in each]) for name, each in below]
    return replace(heat, below=lines)


def by_distance(question: Question, variant: Variant) -> Heat | None:
    """Length x distance from the needle to the end, in windows; None for rows that do not say."""
    if not all("distance" in row for row in question.of(variant)):
        return None
    return _rates(
        question, variant, "distance, windows", distance_bin, lambda b: f"{b[0]:g}\u2013{b[1]:g}"
    )


def _rates(
    question: Question,
    variant: Variant,
    corner: str,
    key: Callable[[Row], Any],
    text: Callable[[Any], str],
) -> Heat:
    rows = question.of(variant)
    found = group(rows, lambda row: (key(row), row["seq_len"]))
    lengths = sorted({row["seq_len"] for row in rows})
    lines = [
        (text(k), [_rate_cell(found[k, n]) if (k, n) in found else None for n in lengths])
        for k in sorted({key(row) for row in rows})
    ]
    caption = f"{variant.words}, by length and {corner.split(',')[0]}"
    return Heat(caption, corner, [length_text(n, variant) for n in lengths], lines)


def _rate_cell(rows: Sequence[Row]) -> Cell:
    right, n = sum(row["correct"] for row in rows), len(rows)
    value, low, high = share(rows)
    small = f"{100 * (low or 0):.0f}\u2013{100 * (high or 0):.0f} %"
    return Cell(f"{right}/{n}", small, *sequential(value), n < FEW)


def difference(question: Question, a: Variant, b: Variant) -> Heat | None:
    """b minus a on the same prompts by length and depth, in points; None if they share no prompt or have no depth.

    Cells by depth are one family of Holm's, the line over all depths is another.
    """
    both = pairs(question.of(a), question.of(b))
    if not both or not question.has_depth:
        return None
    by_cell = group(both, lambda pair: (pair[1]["depth"], pair[1]["seq_len"]))
    by_length = group(both, lambda pair: pair[1]["seq_len"])
    cells = dict(zip(by_cell, family([compare(a, b, x) for x in by_cell.values()]), strict=True))
    totals = dict(
        zip(by_length, family([compare(a, b, x) for x in by_length.values()]), strict=True)
    )
    lengths = sorted(by_length)
    lines = [
        (
            depth_text(d),
            [_difference_cell(cells[d, n]) if (d, n) in cells else None for n in lengths],
        )
        for d in sorted({d for d, _ in by_cell})
    ]
    lines.append(("all depths", [_difference_cell(totals[n]) for n in lengths]))
    caption = f"{b.words} minus {a.words}, percentage points"
    note = (
        f"In small type: questions that only the first named got right : only the second, of all pairs. "
        f"Framed, with a star: exact p < 0.05 after Holm over the {len(cells)} cells by depth, or over the "
        f"{len(totals)} of all depths."
    )
    return Heat(caption, "depth", [length_text(n, b) for n in lengths], lines, note)


def _difference_cell(c: Comparison) -> Cell:
    small = f"{c.only_b} : {c.only_a} of {c.n}"
    return Cell(signed(c.points.value), small, *diverging(c.points.value / 100), c.n < FEW, c.shown)


def depth_text(depth: float) -> str:
    """0.25."""
    return f"{depth:g}"


def length_text(seq_len: int, variant: Variant) -> str:
    """1,024 (4x)."""
    return f"{seq_len:,} ({seq_len / variant.window:g}x)"
