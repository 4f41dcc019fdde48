"""Plain tables: as data for the page, and as columns of text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ctxext.evals.stats import Interval
from ctxext.report.analysis.records import Row, names, series

NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Table:
    """Plain text in cells; the first of a row is its header."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def by_length(title: str, found: Sequence[Row], text: Callable[[Row], str]) -> str:
    """One line per method, one column per length; lengths beyond the window carry a star."""
    lengths = sorted({cell["seq_len"] for cell in found})
    beyond = {cell["seq_len"] for cell in found if cell["beyond_window"]}
    texts = {(series(cell), cell["seq_len"]): text(cell) for cell in found}
    lines = [
        [name, *(texts.get((key, n), "-") for n in lengths)] for key, name in names(found).items()
    ]
    windows = sorted({cell["window"] for cell in found if cell["beyond_window"]})
    note = (
        f"\n* longer than the window of pre-training ({', '.join(map(str, windows))} tokens)"
        if windows
        else ""
    )
    return grid(title, ["", *(f"{n}{'*' * (n in beyond)}" for n in lengths)], lines) + note


def points(interval: Interval) -> str:
    """Percentage points with their bounds."""
    bounds = "" if interval.low is None else f" [{interval.low:+.0f}, {interval.high:+.0f}]"
    return f"{interval.value:+.0f}{bounds}"


def between(interval: Interval, form: str) -> str:
    """A value with its bounds: 72 [60, 83]."""
    low, high = interval.low, interval.high
    bounds = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return f"{interval.value:{form}}{bounds}"


def grid(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    text = [
        "  ".join(
            x.ljust(w) if i == 0 else x.rjust(w)
            for i, (x, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [header, *lines]
    ]
    return "\n".join([title, *(line.rstrip() for line in text)])
