"""Heatmaps: accuracy by length and depth or distance, paired differences, and context gain."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ctxext.evals.record import AnswerRecord
from ctxext.report.analysis.comparisons import Comparison, as_family, compare, pairs
from ctxext.report.analysis.context_gain import Gain, gains
from ctxext.report.analysis.records import (
    TaskResults,
    Variant,
    accuracy,
    group,
    num_correct,
    seq_lens,
)
from ctxext.report.analysis.study import Study
from ctxext.report.drawing.colours import diverging, diverging_on_dark, sequential
from ctxext.report.drawing.heatmap import Cell, Heatmap
from ctxext.report.pages.tables_by_length import BASELINE, CONTROLS, GAIN_UNIT

FEW = 20
"""A cell of fewer questions is hatched: its interval is too wide to say much."""
MOST_ROWS = 9
"""Depths that have a row each. Of more, several share one, as each alone was asked too little."""
SHARED_ROWS = 4
"""The rows of more depths."""
DISTANCE_BINS = (0, 0.25, 0.5, 1, 1.5, 2, 3, 4)
"""Edges of the distance bins in windows; beyond 4 they double."""


def by_depth(study: Study, variant: Variant) -> Heatmap:
    """Length x depth; below: the variant's controls, and the in-window baseline."""
    task = study.task
    lengths = seq_lens(task.select(variant))
    below: dict[str, list[list[AnswerRecord]]] = {
        name: [task.select_controls(variant, condition, n) for n in lengths]
        for condition, name in CONTROLS.items()
    }
    baseline = study.baseline(variant)
    note = ""
    if baseline is not None and variant.window not in lengths:
        note = f"{BASELINE.capitalize()}: {baseline.text}."
    elif baseline is None or baseline.variant != variant:
        records = baseline.records if baseline else []
        below[BASELINE] = [records if n == variant.window else [] for n in lengths]
    lines = [
        (name, [_accuracy_cell(records) for records in by_length])
        for name, by_length in below.items()
    ]
    rows = depth_rows(record.question.depth or 0.0 for record in task.records)

    def row(record: AnswerRecord) -> tuple[float, float]:
        return rows[record.question.depth or 0.0]

    heatmap = _accuracies(task, variant, "depth", row, range_name)
    return replace(heatmap, below=lines, note=note)


def by_distance(task: TaskResults, variant: Variant) -> Heatmap | None:
    """Length x distance from the needle to the end, in windows; None where there is no needle."""
    records = task.select(variant)
    if not all(record.question.distance is not None for record in records):
        return None

    return _accuracies(task, variant, "distance, windows", distance_bin, range_name)


def depth_rows(depths: Iterable[float]) -> dict[float, tuple[float, float]]:
    """The row of each depth, as its (first, last) depth; see `MOST_ROWS`."""
    ordered = sorted(set(depths))
    size = 1 if len(ordered) <= MOST_ROWS else -(-len(ordered) // SHARED_ROWS)
    rows = {}
    for start in range(0, len(ordered), size):
        of_row = ordered[start : start + size]
        rows |= dict.fromkeys(of_row, (of_row[0], of_row[-1]))
    return rows


def range_name(row: tuple[float, float]) -> str:
    """Such as 0.25, or 0.2\u20130.4."""
    first, last = (f"{value:.3g}" for value in row)
    return first if first == last else f"{first}\u2013{last}"


def distance_bin(record: AnswerRecord) -> tuple[float, float]:
    """The bin low <= x < high, in windows, of the distance from the needle to the end."""
    assert record.question.distance is not None
    x = record.question.distance / record.model.window
    edges = list(DISTANCE_BINS)
    while x >= edges[-1]:
        edges.append(2 * edges[-1])
    return next((a, b) for a, b in zip(edges, edges[1:], strict=False) if a <= x < b)


def _accuracies(
    task: TaskResults,
    variant: Variant,
    corner: str,
    key: Callable[[AnswerRecord], Any],
    name: Callable[[Any], str],
) -> Heatmap:
    records = task.select(variant)
    cells = group(records, lambda record: (key(record), record.seq_len))
    lengths = seq_lens(records)
    lines = [
        (name(row), [_accuracy_cell(cells.get((row, n), [])) for n in lengths])
        for row in sorted({key(record) for record in records})
    ]
    caption = f"{variant.phrase}, by length and {corner.split(',')[0]}"
    return Heatmap(caption, corner, [length_name(n, variant) for n in lengths], lines)


def _accuracy_cell(records: Sequence[AnswerRecord]) -> Cell | None:
    if not records:
        return None
    rate = accuracy(records)
    percent = rate.scaled(100)
    small = f"{percent.low:.0f}\u2013{percent.high:.0f} %"
    right = f"{num_correct(records)}/{len(records)}"
    return Cell(right, small, *sequential(rate.value), hatched=len(records) < FEW)


def difference(task: TaskResults, a: Variant, b: Variant) -> Heatmap | None:
    """b minus a on the same prompts, in points by length and depth.

    Cells by depth are one family of Holm's adjustment, the line over all depths is another. None
    without common prompts or depths.
    """
    both = pairs(task.select(a), task.select(b))
    if not both or not task.has_depth:
        return None
    rows = depth_rows(pair[1].question.depth or 0.0 for pair in both)
    by_cell = group(both, lambda pair: (rows[pair[1].question.depth or 0.0], pair[1].seq_len))
    by_length = group(both, lambda pair: pair[1].seq_len)
    of_cells = as_family([compare(a, b, cell_pairs) for cell_pairs in by_cell.values()])
    of_lengths = as_family([compare(a, b, cell_pairs) for cell_pairs in by_length.values()])
    cells = dict(zip(by_cell, map(_difference_cell, of_cells), strict=True))
    totals = dict(zip(by_length, map(_difference_cell, of_lengths), strict=True))
    lengths = sorted(totals)
    lines = [
        (range_name(row), [cells.get((row, n)) for n in lengths])
        for row in sorted({row for row, _ in cells})
    ]
    lines.append(("all depths", [totals[n] for n in lengths]))
    note = (
        "In small type: questions that only the first variant got right : only the second, of all "
        "pairs. Framed, with a star: exact p < 0.05 after Holm's adjustment over the "
        f"{len(cells)} cells by depth, or over the {len(totals)} of all depths."
    )
    caption = f"{b.phrase} minus {a.phrase}, percentage points"
    return Heatmap(caption, "depth", [length_name(n, b) for n in lengths], lines, note)


def _difference_cell(c: Comparison) -> Cell:
    small = f"{c.only_b} : {c.only_a} of {c.n}"
    share = c.points.value / 100
    return Cell(
        f"{c.points.value:+z.0f}",
        small,
        *diverging(share),
        hatched=c.n < FEW,
        marked=c.significant,
        on_dark=diverging_on_dark(share),
    )


def gain_by_depth(study: Study, variant: Variant) -> Heatmap | None:
    """Context gain of a variant by length and depth; None without any, or at a single depth."""
    rows = depth_rows(record.question.depth or 0.0 for record in study.task.records)

    def at(record: AnswerRecord) -> tuple[tuple[float, float], int]:
        return rows[record.question.depth or 0.0], record.seq_len

    of_variant = gains(study.task, at).get(variant, [])
    cells = {(rows[gain.depth], gain.seq_len): gain for gain in of_variant}
    lengths = sorted({seq_len for _, seq_len in cells})
    if len({row for row, _ in cells}) < 2:
        return None
    largest = max(abs(gain.mean.value) for gain in of_variant) or 1.0
    coloured = {at: _gain_cell(gain, largest) for at, gain in cells.items()}
    lines = [
        (range_name(row), [coloured.get((row, n)) for n in lengths])
        for row in sorted({row for row, _ in cells})
    ]
    note = (
        "Blue: the answer is more likely with the needle. In small type: the 95 % interval over "
        "documents."
    )
    caption = f"{variant.phrase}: context gain, {GAIN_UNIT}"
    return Heatmap(caption, "depth", [length_name(n, variant) for n in lengths], lines, note)


def _gain_cell(gain: Gain, largest: float) -> Cell:
    value, low, high = gain.mean
    small = f"n = {gain.n}" if low is None else f"{low:.1f} to {high:.1f}"
    share = value / largest
    return Cell(
        f"{value:.2f}", small, *diverging(share), hatched=False, on_dark=diverging_on_dark(share)
    )


def length_name(seq_len: int, variant: Variant) -> str:
    """Such as 1,024 (4x)."""
    return f"{seq_len:,} ({seq_len / variant.window:g}x)"
