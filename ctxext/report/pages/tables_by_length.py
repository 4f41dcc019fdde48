"""Tables with a row per variant and a column per length, and the words that tables share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ctxext.report.analysis.records import Variant, group
from ctxext.report.table import Column, Table

NOT_ASKED = "not asked"
ONE_DOCUMENT = "none: a single document"
"""Where an interval would be, if there were one."""
CONTROLS = {"no-needle": "no needle (floor)", "needle-only": "needle only (ceiling)"}
BASELINE = "in-window baseline"
GAIN_UNIT = "nats per token"


class OfVariantAndLength(Protocol):
    """A result of one variant at one length."""

    @property
    def variant(self) -> Variant: ...

    @property
    def seq_len(self) -> int: ...


R = TypeVar("R", bound=OfVariantAndLength)


@dataclass(frozen=True)
class Line(Generic[R]):
    """A named row of a table with a column per length."""

    name: str
    by_length: dict[int, R]
    missing: str = "-"
    """The text of a cell without a result."""


def columns_by_length(
    lengths: Sequence[int], text: Callable[[R], str], *, window: int | None = None
) -> list[Column[Line[R]]]:
    """The name of a line, and a column per length; a star marks lengths beyond the window."""

    def cell(seq_len: int) -> Callable[[Line[R]], str]:
        def result_text(line: Line[R]) -> str:
            result = line.by_length.get(seq_len)
            return line.missing if result is None else text(result)

        return result_text

    header = [f"{n:,}{'*' * (window is not None and n > window)}" for n in lengths]
    by_length = [Column(name, cell(n)) for name, n in zip(header, lengths, strict=True)]
    return [Column("variant", lambda line: line.name), *by_length]


def _variant_name(result: OfVariantAndLength) -> str:
    return result.variant.name


def table_by_length(
    title: str,
    results: Sequence[R],
    text: Callable[[R], str],
    *,
    name: Callable[[R], str] = _variant_name,
    key: str = "",
    notes: Sequence[str] = (),
) -> Table[Line[R]]:
    """A row per variant and a column per length; lengths beyond the window carry a star."""
    lengths = sorted({result.seq_len for result in results})
    window = min((result.variant.window for result in results), default=None)
    if window is not None and lengths[-1] > window:
        notes = [*notes, f"* longer than the pre-training window ({window:,} tokens)"]
    lines = [
        Line(line, {result.seq_len: result for result in of_line})
        for line, of_line in group(results, name).items()
    ]
    columns = columns_by_length(lengths, text, window=window)
    return Table(title, columns, lines, notes, key, results)  # pyright: ignore[reportArgumentType]
