"""Batches: a pure function of (seed, step), so that a resumed run needs no state and any host can make any row."""

import queue
import threading
from collections.abc import Callable, Collection, Generator
from typing import NamedTuple

import numpy as np

from ctxext.data.corpus import Rows
from ctxext.positions import Positions


class Batch(NamedTuple):
    """All [B, T]: tokens, targets, positions, segment_ids int32; weights float32. Segment 0 is padding."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray


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
    """Rows `first_row` .. `first_row + batch_size` of training step `step`; row i depends on (seed, step, i) only.

    own: the rows that are wanted here, None for all; of the others only the positions are made, the rest is zero.
    """
    shape = (batch_size, seq_len)
    batch = Batch(
        *(np.zeros(shape, np.float32 if name == "weights" else np.int32) for name in Batch._fields)
    )
    for place, index in enumerate(range(first_row, first_row + batch_size)):
        # Two generators, so that the text does not change with the positions.
        text, where = (np.random.default_rng([seed, step, index, stream]) for stream in (0, 1))
        batch.positions[place] = positions.sample(where, (1, seq_len))[0]
        if own is None or index in own:
            row = rows.row(text, seq_len)
            for name, value in row._asdict().items():
                getattr(batch, name)[place] = value
    return batch


def prefetch(
    make: Callable[[int], Batch], start: int, stop: int, *, depth: int = 2
) -> Generator[tuple[int, Batch], None, None]:
    """(step, make(step)) for the steps from `start` to before `stop`, made ahead of time in a thread."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: object) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                pass

    def work() -> None:
        try:
            for step in range(start, stop):
                if closed.is_set():
                    return
                put((step, make(step)))
            put(None)
        except BaseException as error:  # raised where the batch is wanted
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
