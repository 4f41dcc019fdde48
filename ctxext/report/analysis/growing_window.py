"""Where the loss of whole books leaves its level at home, which is that inside the window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ctxext.evals.curves import mean_band
from ctxext.evals.growing_window import GrowingWindow
from ctxext.evals.record import LossRecord, PositionLosses
from ctxext.evals.stats import (
    Interval,
    cluster_index,
    non_increasing,
    ratio_interval,
)
from ctxext.report.analysis.records import Variant, documents, group, is_base_of, labels

RISE = math.log(1.1)
"""Nats above the level at home from which the loss has left it: a perplexity 10 % higher."""


@dataclass(frozen=True)
class Departure:
    """The number of tokens after which the loss leaves its level at home.

    value: None if it does not, up to the longest text that was read. The loss is at home up to
    `low` tokens and has left it by `high`, in 95 % of cases; None: not as far as was read. Without
    bounds (a single book), `low` is None too.
    """

    value: int | None
    low: int | None
    high: int | None

    @property
    def may_be_chance(self) -> bool:
        """Whether the mean leaves home, and the bounds do not exclude that the loss stays there."""
        return self.value is not None and self.low is not None and self.high is None


@dataclass(frozen=True, eq=False)
class BookLosses:
    """The losses by position of one variant in books, each of which was read once.

    Home are the positions in the second half of the window; where a book is no longer than half a
    window, its second half.
    """

    variant: Variant
    records: Sequence[LossRecord]

    @property
    def seq_len(self) -> int:
        return self.records[0].seq_len

    @cached_property
    def books(self) -> list[int | str]:
        """The documents; a book that several training seeds have read is one."""
        return list(dict.fromkeys(documents(self.records)))

    @property
    def num_books(self) -> int:
        return len(self.books)

    @property
    def edges(self) -> tuple[int, ...]:
        """Bin i holds the tokens after edges[i] to edges[i + 1] - 1 others."""
        return self._bins[0].edges

    @cached_property
    def _bins(self) -> list[PositionLosses]:
        return [record.scores.by_position for record in self.records if record.scores.by_position]

    @cached_property
    def _sums(self) -> np.ndarray:
        """Nats [books, bins]."""
        return self._by_book([bins.nll for bins in self._bins])

    @cached_property
    def _counts(self) -> np.ndarray:
        """Tokens [books, bins]."""
        return self._by_book([bins.count for bins in self._bins])

    def _by_book(self, values: Sequence[Sequence[float]]) -> np.ndarray:
        row, num_books = cluster_index(documents(self.records))
        sums = np.zeros((num_books, len(self.edges) - 1))
        np.add.at(sums, row, np.array(values, np.float64))
        return sums

    @cached_property
    def home(self) -> tuple[int, int]:
        """(first, end): the edges of the positions at home."""
        end = min(self.variant.window, self.edges[-1])
        start = max(edge for edge in self.edges[:-1] if edge <= max(1, end // 2))
        return start, end

    @cached_property
    def beyond(self) -> list[tuple[int, int]]:
        """(first, end) of the bins beyond the window."""
        both = zip(self.edges, self.edges[1:], strict=False)
        return [(first, end) for first, end in both if first >= self.variant.window]

    def means(self, first: int, end: int) -> np.ndarray:
        """Nats per token between two edges, by book."""
        columns = self._columns(first, end)
        return self._sums[:, columns].sum(1) / self._counts[:, columns].sum(1)

    def _columns(self, first: int, end: int) -> list[int]:
        return [i for i, edge in enumerate(self.edges[:-1]) if first <= edge < end]

    @cached_property
    def level(self) -> Interval:
        """Mean nats per token at home, a t interval over books."""
        columns = self._columns(*self.home)
        sums, counts = self._sums[:, columns].sum(1), self._counts[:, columns].sum(1)
        return ratio_interval(sums, counts).clipped(0)

    def rise(self, first: int, end: int) -> Interval:
        """Nats per token between two edges above those at home in the same book."""
        rises = self.means(first, end) - self.means(*self.home)
        return ratio_interval(rises, np.ones(len(rises)))

    @cached_property
    def rises(self) -> list[Interval]:
        """The same for each bin beyond the window, with a band that holds for all together."""
        if not self.beyond:
            return []
        at_home = self.means(*self.home)
        by_bin = np.stack([self.means(first, end) - at_home for first, end in self.beyond], 1)
        return mean_band(by_bin)

    @cached_property
    def departure(self) -> Departure:
        """Where the loss leaves its level at home by `RISE`.

        The value is where means that are made non-decreasing (isotonic regression) exceed it, so
        that a single hard chapter is not enough; the bounds are where the band does.
        """
        if not self.beyond:
            return Departure(None, None, None)
        values = np.array([rise.value for rise in self.rises])
        sizes = np.array([end - first for first, end in self.beyond], np.float64)
        smooth = -non_increasing(-values * sizes, sizes)
        starts = [first for first, _ in self.beyond]
        value = next((n for n, rise in zip(starts, smooth, strict=True) if rise > RISE), None)
        if self.rises[0].low is None:
            return Departure(value, None, None)
        certain = [
            (first, end)
            for (first, end), rise in zip(self.beyond, self.rises, strict=True)
            if rise.low is not None and rise.low > RISE
        ]
        possible = [
            first
            for first, rise in zip(starts, self.rises, strict=True)
            if rise.high is not None and rise.high > RISE
        ]
        if certain:
            value = certain[0][0] if value is None else min(value, certain[0][0])
        low = possible[0] if possible else self.edges[-1]
        return Departure(value, low, certain[0][1] if certain else None)

    def to_json(self) -> dict[str, Any]:
        return {
            **labels(self.records[0]),
            "books": self.num_books,
            "edges": list(self.edges),
            "nats": (self._sums.sum(0) / self._counts.sum(0)).tolist(),
            "home": {"first": self.home[0], "end": self.home[1], **self.level._asdict()},
            "rises": [
                {"first": first, "end": end, **rise._asdict()}
                for (first, end), rise in zip(self.beyond, self.rises, strict=True)
            ],
            "departure": {
                "rise": RISE,
                "value": self.departure.value,
                "low": self.departure.low,
                "high": self.departure.high,
            },
        }


@dataclass(frozen=True, eq=False)
class BookDifference:
    """Nats per token of one variant minus those of another, in the same books and positions."""

    a: BookLosses
    b: BookLosses
    spans: list[tuple[int, int]]
    """(first, end) edges: home, and the bins beyond the window."""
    differences: list[Interval]
    """b minus a, with a band that holds for all spans together."""
    beyond: Interval | None
    """b minus a over all tokens beyond the window, a t interval over books; None without any."""
    num_books: int
    """Books that both have read."""

    def to_json(self) -> dict[str, Any]:
        return {
            **labels(self.b.records[0]),
            "minus": self.a.variant.name,
            "books": self.num_books,
            "all_beyond": None if self.beyond is None else self.beyond._asdict(),
            "spans": [
                {"first": first, "end": end, **difference._asdict()}
                for (first, end), difference in zip(self.spans, self.differences, strict=True)
            ],
        }


def book_losses(records: Sequence[LossRecord], variants: Sequence[Variant]) -> list[BookLosses]:
    """One entry per variant and length of the records of the growing window."""
    by_model = {variant.model: variant for variant in variants}
    cells = group(
        (r for r in records if r.estimator.name == GrowingWindow.name and r.scores.by_position),
        lambda record: (record.settings, record.model, record.seq_len),
    )
    return [BookLosses(by_model[model], cell) for (_, model, _), cell in cells.items()]


def differences_to_first(entries: Sequence[BookLosses]) -> list[BookDifference]:
    """Every variant against the first, where both read the same books with the same window."""
    if not entries:
        return []
    first, *others = entries
    differences = (difference(first, other) for other in others)
    return [d for d in differences if d is not None]


def differences_to_base(entries: Sequence[BookLosses]) -> list[BookDifference]:
    """Every variant with a method against the same weights, or the same training, without it."""
    differences = []
    for entry in entries:
        bases = [e for e in entries if is_base_of(e.variant.model, entry.variant.model)]
        if len(bases) == 1 and (found := difference(bases[0], entry)):
            differences.append(found)
    return differences


def difference(a: BookLosses, b: BookLosses) -> BookDifference | None:
    """b minus a, paired by book; None unless both read the same books with the same window."""
    common = [book for book in b.books if book in a.books]
    if not common or a.edges != b.edges or a.home != b.home:
        return None
    rows_a = [a.books.index(book) for book in common]
    rows_b = [b.books.index(book) for book in common]

    def by_book(first: int, end: int) -> np.ndarray:
        return b.means(first, end)[rows_b] - a.means(first, end)[rows_a]

    spans = [a.home, *a.beyond]
    band = mean_band(np.stack([by_book(*span) for span in spans], 1))
    beyond = None
    if a.beyond:
        of_all = by_book(a.beyond[0][0], a.edges[-1])
        beyond = ratio_interval(of_all, np.ones(len(of_all)))
    return BookDifference(a, b, spans, band, beyond, len(common))
