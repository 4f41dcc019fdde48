"""Batches as a pure function of (seed, step): resuming needs no state, any host makes any row."""

import functools
import queue
import threading
from collections.abc import Callable, Collection, Generator
from typing import NamedTuple

import numpy as np

from ctxext.data.corpus import Row, Rows, TooLittleText
from ctxext.positions import Positions, check_placement


class Batch(NamedTuple):
    """All [B, T]; weights are float32, the rest int32. Segment 0 is padding."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray


class _Text:
    """The text that one row of `seq_len` tokens is taken from, read when it is asked for."""

    def __init__(
        self, rows: Rows, rng: np.random.Generator, positions: Positions, seq_len: int
    ) -> None:
        self._rows = rows
        self._rng = rng
        self._positions = positions
        self._seq_len = seq_len

    @functools.cached_property
    def row(self) -> Row:
        needed = self._positions.text_tokens(self._seq_len)
        try:
            return self._rows.row(self._rng, needed)
        except TooLittleText as error:
            if needed == self._seq_len:
                raise
            reaches = hasattr(self._positions, "max_position_embeddings")
            shorter = " or lower positions.max_position_embeddings" if reaches else ""
            raise ValueError(
                f"{type(self._positions).__name__} takes a row of {self._seq_len:,} tokens from a "
                f"text of {needed:,}, but the data has {error.tokens:,} tokens in all: give more "
                f"text{shorter}"
            ) from error


def make_batch(
    rows: Rows,
    positions: Positions,
    *,
    seed: int,
    step: int,
    batch_size: int,
    seq_len: int,
    first_row: int = 0,
    own: Collection[int] | None = None,
) -> Batch:
    """Rows `first_row` to `first_row + batch_size` of training step `step`.

    Row i depends on (seed, step, i) only. own: the rows needed on this host, None for all; the
    others get their positions and are otherwise zero. Raises ValueError for positions that do not
    increase along a row.
    """
    shape = (batch_size, seq_len)
    batch = Batch(
        *(np.zeros(shape, np.float32 if name == "weights" else np.int32) for name in Batch._fields)
    )
    for place, index in enumerate(range(first_row, first_row + batch_size)):
        # Two generators, so that the text does not change with the positions.
        text_rng = np.random.default_rng([seed, step, index, 0])
        positions_rng = np.random.default_rng([seed, step, index, 1])
        text = _Text(rows, text_rng, positions, seq_len)
        placement = positions.place(positions_rng, seq_len, lambda text=text: text.row.tokens)
        check_placement(positions, placement, seq_len)
        batch.positions[place] = placement.positions
        if own is None or index in own:
            chosen = slice(None) if placement.indices is None else placement.indices
            for name, value in text.row._asdict().items():
                getattr(batch, name)[place] = value[chosen]
    return batch


def prefetch(
    make: Callable[[int], Batch], start: int, stop: int, *, depth: int = 2
) -> Generator[tuple[int, Batch], None, None]:
    """Yield (step, make(step)) for `start` <= step < `stop`, made ahead of time in a thread.

    depth: how many batches wait at most. An exception of `make` is raised where its batch is due.
    """
    waiting: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: object) -> None:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                pass

    def work() -> None:
        try:
            for step in range(start, stop):
                if closed.is_set():
                    return
                put((step, make(step)))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
