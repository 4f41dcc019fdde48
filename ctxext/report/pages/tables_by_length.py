"""Tables with a row per variant and a column per length, and the words that tables share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ctxext.evals.stats import Interval
from ctxext.report.analysis.records import Variant, group
from ctxext.report.table import Column, Table

NOT_ASKED = "not asked"
ONE_DOCUMENT = "none: a single document"
"""Where an interval would be, if there were one."""
ONE_TEXT = "(one text)"
"""The same in a cell."""
CONTROLS = {"no-needle": "no needle (floor)", "needle-only": "needle without text"}
BASELINE = "in-window baseline"
GAIN_UNIT = "nats per token"


class OfVariantAndLength(Protocol):
    """A result of one variant at one length."""

    @property
    def variant(self) -> Variant: ...

    @property
    def seq_len(self) -> int: ...


R = TypeVar("R", bound=OfVariantAndLength)


def interval_text(interval: Interval, spec: str) -> str:
    """Such as 2.32 [1.90, 2.74]; 2.32 (one text) where a single text gives no bounds."""
    return f"{interval.value:{spec}} {interval.bounds(spec, ONE_TEXT)}"


def control_note(variants: Iterable[Variant]) -> list[str]:
    """A note on the bases among variants that have a method; none where there are no others."""
    every = list(dict.fromkeys(variants))
    bases = [variant for variant in every if variant.is_base]
    if not bases or len(bases) == len(every):
        return []
    names = ", ".join(base.name for base in bases)
    return [f"{names}: the base as it is; what it does beyond its window is a control."]


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
