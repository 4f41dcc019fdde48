"""One form of a table: typed rows and columns that word them, for text, HTML and JSON."""

import textwrap
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ctxext.terminal import printable, printable_line

WIDTH = 100
"""Columns of a terminal that notes are wrapped to."""
Row = TypeVar("Row")


class Result(Protocol):
    """A number of an analysis, with everything that belongs to it."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table: its header, and the text of its cell for a row."""

    title: str
    text: Callable[[Row], str]


@dataclass(frozen=True)
class Table(Generic[Row]):
    """Rows, and the columns that word them; the first column is the header of a row.

    Text and HTML show the columns. JSON has the `results` that the rows are made of, complete.
    """

    title: str
    columns: Sequence[Column[Row]]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    key: str = ""
    """The name of the results in JSON; "" where another table brings them there."""
    results: Sequence["Result"] = ()

    @property
    def header(self) -> list[str]:
        return [printable_line(column.title) for column in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """The printable texts of all cells, by row."""
        return [[printable_line(column.text(row)) for column in self.columns] for row in self.rows]

    def to_text(self) -> str:
        """Columns padded to their widest cell; the first is aligned left, the others right."""
        lines = [self.header, *self.cells] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        notes = [line for note in self.notes for line in textwrap.wrap(printable(note), WIDTH)]
        return "\n".join([printable_line(self.title), *(line.rstrip() for line in padded), *notes])

    def to_json(self) -> list[dict[str, Any]]:
        """The results as data, complete."""
        return [result.to_json() for result in self.results]


def table_of_texts(
    title: str, header: Sequence[str], lines: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> Table[Sequence[str]]:
    """A table whose rows are texts already."""
    columns = [Column(name, _text_at(i)) for i, name in enumerate(header)]
    return Table(title, columns, lines, notes)


def _text_at(index: int) -> Callable[[Sequence[str]], str]:
    return lambda line: line[index]


def counted(items: Sized, name: str) -> str:
    """How many there are of what is called `name`, such as 1 variant or 3 variants."""
    return f"{len(items)} {name}{'s' * (len(items) != 1)}"
