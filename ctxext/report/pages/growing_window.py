"""Tables, a chart and sentences about the loss of whole books by position."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ctxext.report.analysis.growing_window import (
    RISE,
    BookDifference,
    BookLosses,
    Departure,
)
from ctxext.report.drawing.axes import Axis, linear_axis
from ctxext.report.drawing.charts import Chart, Line, Point, legend_of, line_chart
from ctxext.report.drawing.svg import ReferenceLine
from ctxext.report.pages.sources import STDLIB, is_stdlib, source_text, sources_of
from ctxext.report.pages.styles import Styles
from ctxext.report.pages.tables_by_length import ONE_DOCUMENT, control_note, interval_text
from ctxext.report.table import Column, Table, counted, table_of_texts

PERCENT = round(100 * math.expm1(RISE))
LAST_WINDOW = (
    "Not in this table: the base with only the last window before each token, which would show "
    "whether the text before that is used. `--evals ppl` asks that: the same tokens after one "
    "window of text, and after more."
)
"""The control that growing windows do not hold."""


def growing_window_table(entries: Sequence[BookLosses], detail: str = "") -> Table[BookLosses]:
    """The level at home, how far the loss rises above it by doubling, and where it leaves it."""

    def level(entry: BookLosses) -> str:
        return f"{entry.level:.2f}"

    def rise(first: int, end: int) -> Callable[[BookLosses], str]:
        return lambda entry: f"{entry.rise(first, end):+z.2f}" if entry.beyond else "-"

    first = entries[0]
    columns = [
        Column[BookLosses]("variant", lambda entry: entry.variant.name),
        Column[BookLosses]("books", lambda entry: str(entry.num_books)),
        Column(f"at home, {_span(*first.home)}", level),
        *(Column(f"above it, {_span(*span)}", rise(*span)) for span in doublings(first)),
        Column[BookLosses]("leaves home after", lambda entry: departure_text(entry)),
    ]
    title = (
        f"growing window: nats per token of books read once, {first.seq_len:,} tokens{detail} "
        "[95 % interval over books]"
    )
    note = (
        f"home: the second half of the window ({first.variant.window:,} tokens). The loss has left "
        f"it where the perplexity is {PERCENT} % above that at home, by a band that holds for all "
        "positions together."
    )
    notes = [note, *_source_note(entries), *control_note(entry.variant for entry in entries)]
    if any(entry.beyond for entry in entries):
        notes.append(LAST_WINDOW)
    return Table(title, columns, entries, notes, "growing_window", entries)


def _source_note(entries: Sequence[BookLosses]) -> list[str]:
    """Where the books come from, which may be files of code."""
    sources = sources_of(record for entry in entries for record in entry.records)
    return [f"books: {', '.join(map(source_text, sources))}."] if sources else []


class _Books(NamedTuple):
    """How the texts of a sentence are called."""

    what: str
    """At first: 4 books, or 4 files of Python's standard library."""
    briefly: str
    """Then: 4 books, or 4 files."""
    one: str
    """A book, or a file."""


def _books(entry: BookLosses, count: int) -> _Books:
    sources = sources_of(entry.records)
    of_stdlib = bool(sources) and all(map(is_stdlib, sources))
    one = "file" if of_stdlib else "book"
    briefly = f"{count} {one}{'s' * (count != 1)}"
    return _Books(f"{briefly} of {STDLIB}" if of_stdlib else briefly, briefly, one)


def doublings(entry: BookLosses) -> list[tuple[int, int]]:
    """(first, end) edges beyond the window, which double."""
    if not entry.beyond:
        return []
    spans = []
    first, last = entry.beyond[0][0], entry.edges[-1]
    while first < last:
        # The last token of a text predicts nothing, so that a text ends one short of a doubling.
        end = last if 2 * first >= last else max(e for _, e in entry.beyond if e <= 2 * first)
        spans.append((first, end))
        first = end
    return spans


def book_differences_table(
    differences: Sequence[BookDifference], detail: str = ""
) -> Table[BookDifference]:
    """Every variant against the first, position by position in the same books."""

    def cell(index: int) -> Callable[[BookDifference], str]:
        return lambda entry: f"{entry.differences[index]:+z.2f}"

    def beyond(entry: BookDifference) -> str:
        return "-" if entry.beyond is None else interval_text(entry.beyond, "+z.2f")

    spans = differences[0].spans
    columns = [
        Column[BookDifference]("variant", lambda entry: entry.b.variant.name),
        Column("beyond", beyond),
        *(Column(_span(*span), cell(i)) for i, span in enumerate(spans)),
    ]
    title = (
        f"growing window: nats per token, difference to {differences[0].a.variant.name} in the "
        f"same books and positions{detail} [95 % band, all positions together]"
    )
    note = "beyond: all tokens beyond the window together, a t interval over books."
    notes = [note] if differences[0].beyond else []
    return Table(title, columns, differences, notes, "growing_window_differences", differences)


def against_base_sentence(difference: BookDifference, without: str) -> str:
    """How much lower the loss beyond the window is; without: names the other, "without scaling"."""
    beyond = difference.beyond
    if beyond is None:
        return ""
    books = _books(difference.b, difference.num_books)
    name = difference.b.variant.phrase
    start = f"{name}, read through the same {books.what}: beyond the window the"
    if beyond.low is None or beyond.high is None:
        interval = f"no interval: a single {books.one}"
    else:
        interval = f"95 % CI of the difference {beyond.low:+z.2f} to {beyond.high:+z.2f}"
        if beyond.low <= 0 <= beyond.high:
            return (
                f"{start} loss does not differ significantly from that {without}: "
                f"{beyond.value:+z.2f} nats per token ({interval})."
            )
    lower = "lower" if beyond.value < 0 else "higher"
    size = f"{abs(beyond.value):.2f} nats per token"
    return f"{start} loss is {size} {lower} than {without} ({interval})."


def rise_chart(
    entries: Sequence[BookLosses], styles: Styles, key: str, detail: str = ""
) -> Chart | None:
    """Nats above the level at home by position, with bands; None if nothing is beyond the window.

    The window is where the level ends that the curves are compared with.
    """
    entries = [entry for entry in entries if entry.beyond]
    if not entries:
        return None
    lines = []
    for entry in entries:
        label, style = styles[entry.variant]
        points = [Point(math.sqrt(entry.home[0] * entry.home[1]), 0.0)]
        for (first, end), rise in zip(entry.beyond, entry.rises, strict=True):
            points.append(Point(math.sqrt(first * end), *rise))
        lines.append(Line(label, entry.variant.name, style, points, "band", markers=False))
    title = f"Books: nats per token above the level at home{detail}"
    description = (
        f"Lines for {counted(lines, 'variant')} against tokens seen before; the 95 % bands hold "
        "for all positions together, over books. Above the dashed line the loss has left its level "
        "inside the window."
    )
    window = entries[0].variant.window
    first, last = entries[0].home[0], entries[0].edges[-1]
    ticks = [(2.0**i, f"{2**i:,}") for i in range(24) if first <= 2**i <= last]
    values = [v for line in lines for p in line.points for v in (p.y, p.low, p.high)]
    svg = line_chart(
        title,
        description,
        lines,
        Axis("tokens seen before", first, last, ticks, log=True),
        linear_axis("nats above home", [0.0, RISE, *(v for v in values if v is not None)]),
        key=key,
        references=[
            ReferenceLine(window, "window"),
            ReferenceLine(RISE, f"perplexity + {PERCENT} %", False),
        ],
    )
    numbers: Table[Any] = table_of_texts(
        title,
        ["variant", "tokens seen before", "nats above home", "95 % band, all positions together"],
        [
            [
                entry.variant.name,
                f"{first:,} to {end - 1:,}",
                f"{rise.value:+z.3f}",
                rise.bounds("+z.3f", ONE_DOCUMENT),
            ]
            for entry in entries
            for (first, end), rise in zip(entry.beyond, entry.rises, strict=True)
        ],
    )
    return Chart(title, description, svg, numbers, legend_of(lines))


def departure_text(entry: BookLosses) -> str:
    """Such as: 4,096 [4,096, 5,120]; > 16,384 [12,288, > 16,384]; not shown [8,192, > 16,384]."""
    departure, last = entry.departure, entry.edges[-1]
    if not entry.beyond:
        return "not read beyond the window"
    if departure.may_be_chance:
        return f"not shown {_bounds(departure, last)}"
    value = f"{departure.value:,}" if departure.value is not None else f"> {last:,}"
    return f"{value} {_bounds(departure, last)}".rstrip()


def _bounds(departure: Departure, last: int) -> str:
    if departure.low is None:
        return ""
    low = f"> {last:,}" if departure.low >= last else f"{departure.low:,}"
    high = f"> {last:,}" if departure.high is None else f"{departure.high:,}"
    return f"[{low}, {high}]"


def growing_window_sentence(entry: BookLosses) -> str:
    """Where the loss of books leaves its level at home."""
    departure, last = entry.departure, entry.edges[-1]
    books = _books(entry, entry.num_books)
    name = f"{entry.variant.phrase}, read through {books.what}"
    if not entry.beyond:
        return f"{name}: nothing was read beyond the window."
    interval = f" {_bounds(departure, last)}".rstrip()
    interval = f" (95 % CI{interval})" if interval else f" (no interval: a single {books.one})"
    if departure.value is None:
        return (
            f"{name}: the loss stays within {PERCENT} % of the perplexity at home (the second half "
            f"of the window) up to all {last:,} tokens{interval}."
        )
    if departure.may_be_chance:
        return (
            f"{name}: it is not shown that the loss leaves its level at home (the second half of "
            f"the window) by {PERCENT} % of perplexity up to all {last:,} tokens; "
            f"{books.briefly} do not exclude it from {departure.low:,} tokens on."
        )
    return (
        f"{name}: the loss leaves its level at home (the second half of the window), by {PERCENT} "
        f"% of perplexity, after {departure.value:,} tokens{interval}."
    )


def _span(first: int, end: int) -> str:
    return f"{first:,}-{end - 1:,}"
