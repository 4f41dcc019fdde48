"""A heatmap as a table of coloured cells, for the page and for pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

from ctxext.report.drawing.colours import Colours


@dataclass(frozen=True)
class Cell:
    """One coloured cell: its texts, its colours, and whether it is hatched or framed (marked)."""

    text: str
    small: str
    background: str
    colour: str
    hatched: bool
    marked: bool = False
    on_dark: Colours | None = None
    """Its colours on a dark page, where they differ."""


Line = tuple[str, Sequence[Cell | None]]
"""The header of a row and its cells; None where nothing was asked."""


@dataclass(frozen=True)
class Heatmap:
    """A table of cells."""

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[Line]
    note: str = ""
    below: Sequence[Line] = ()
    """Rows under the others, which these are compared with."""
