"""Tables of perplexities, and of the loss by position."""

from collections.abc import Callable, Sequence
from typing import Any

from ctxext.evals.growing_window import GrowingWindow
from ctxext.evals.record import LossRecord
from ctxext.report.analysis.perplexity import Perplexity, PositionCurve, perplexities
from ctxext.report.analysis.records import Variant
from ctxext.report.pages.tables_by_length import ONE_DOCUMENT, table_by_length
from ctxext.report.table import Column, Table, table_of_texts


def estimator_title(record: LossRecord, detail: str = "") -> str:
    """The perplexity that a record belongs to; detail: see `Results.loss_details`."""
    estimator = record.estimator
    if estimator.name == "longppl":
        title = f"LongPPL: perplexity of key tokens, found by {estimator.keys_from}"
    elif estimator.name == GrowingWindow.name:
        title = "perplexity of the whole beginning of books, read once"
    elif estimator.name == "same-target":
        title = "perplexity of the same tokens with more context"
    else:
        stride = f", stride {estimator.stride:,}" if estimator.stride else ""
        title = f"perplexity, estimator {estimator.name} (mean over {estimator.mean}s{stride})"
    return title + detail


def perplexity_table(
    records: Sequence[LossRecord], variants: Sequence[Variant], detail: str = ""
) -> Table[Any]:
    """Perplexity by length, of records of one estimator; detail: see `Results.loss_details`."""

    def text(perplexity: Perplexity) -> str:
        value = perplexity.perplexity
        return "no key tokens" if value is None else f"{value:.2f}"

    title = f"{estimator_title(records[0], detail)} [95 % interval over documents]"
    return table_by_length(title, perplexities(records, variants), text, key="perplexity")


def perplexity_numbers(title: str, entries: Sequence[Perplexity]) -> Table[Perplexity]:
    """Everything about entries that have scored tokens, for a chart."""

    def value(p: Perplexity) -> str:
        return f"{p.perplexity.value:.2f}" if p.perplexity else ""

    def bounds(p: Perplexity) -> str:
        return p.perplexity.bounds(".2f", ONE_DOCUMENT) if p.perplexity else ""

    columns = [
        Column[Perplexity]("variant", lambda p: p.variant.name),
        Column[Perplexity]("tokens", lambda p: f"{p.seq_len:,}"),
        Column("perplexity", value),
        Column("95 % interval", bounds),
        Column[Perplexity]("bits per byte", lambda p: f"{p.bits_per_byte:.3f}"),
        Column[Perplexity]("target tokens", lambda p: f"{p.count:,}"),
        Column[Perplexity]("documents", lambda p: str(p.num_documents)),
    ]
    return Table(title, columns, entries)


def position_title(curve: PositionCurve, detail: str = "") -> str:
    """The title of tables and charts of the loss by position."""
    name = curve.records[0].estimator.name
    estimator = "" if name == "same-target" else f", estimator {name}"
    if name == GrowingWindow.name:
        estimator = " of books"
    return f"Nats per token by position, at length {curve.seq_len:,}{estimator}{detail}"


def position_table(curves: Sequence[PositionCurve], detail: str = "") -> Table[PositionCurve]:
    """Nats per token by the number of tokens seen before."""

    def nll_text(index: int) -> Callable[[PositionCurve], str]:
        return lambda curve: f"{curve.nll[index].value:.2f}"

    columns = [Column[PositionCurve]("tokens seen before", lambda curve: curve.variant.name)]
    for i, (first, last) in enumerate(curves[0].bins):
        columns.append(Column(f"{first}-{last}", nll_text(i)))
    title = position_title(curves[0], detail)
    return Table(title, columns, curves, key="by_position", results=curves)


def position_numbers(title: str, curves: Sequence[PositionCurve]) -> Table[Any]:
    """Every bin of every curve with its interval, for a chart."""
    lines = [
        [
            curve.variant.name,
            f"{first:,}" if first == last else f"{first:,} to {last:,}",
            f"{nll.value:.3f}",
            nll.bounds(".3f", ONE_DOCUMENT),
            f"{count:,}",
        ]
        for curve in curves
        for (first, last), nll, count in zip(curve.bins, curve.nll, curve.counts, strict=True)
    ]
    header = ["variant", "tokens seen before", "nats per token", "95 % interval", "tokens"]
    return table_of_texts(title, header, lines)
