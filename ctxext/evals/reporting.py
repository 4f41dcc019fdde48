"""How far the evaluations of a model are: a bar on a terminal, elsewhere a line a minute.

Both move with the tokens that are read, not only with finished answers, and weigh each call by its
operations: attention over a long text takes longer than its tokens say.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ctxext.progress import duration, now_at, seconds_left
from ctxext.progress_bar import TerminalBar
from ctxext.terminal import printable_line

INTERVAL = 60.0
"""Seconds between two lines."""

Weights = Sequence[Sequence[float]]
"""Of the calls of each evaluation, in any unit of time."""


class EvaluationProgress:
    """Reports on several evaluations, one after the other; a context manager.

    label: of the model; "" for several. weigh: makes the weights when they are first needed, as it
    has to build all prompts.
    """

    def __init__(
        self,
        label: str,
        weigh: Callable[[], Weights],
        *,
        enabled: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        details = "{task.fields[records]}  {task.fields[left]}"
        self._bar = TerminalBar(enabled=enabled, details=details, counts=False)
        self._label = label
        self._weigh = weigh
        self._enabled = enabled
        self._clock = clock
        self._weights: Weights | None = None
        self._first: tuple[float, tuple[int, int, float]] | None = None
        self._last_line = clock()
        self._task: Any = None
        self._number = -1
        self._title = ""
        self._records = 0
        self._total_records = 0
        self._calls = 0

    @property
    def prints_lines(self) -> bool:
        """Whether there is no terminal to draw on."""
        return self._bar.disable

    def begin(self, title: str, num_records: int) -> None:
        """The next evaluation begins, of which so many records are missing."""
        self._number += 1
        self._title = printable_line(title)
        now_at(title)
        self._records = 0
        self._total_records = num_records
        self._calls = 0
        self._task = self._bar.add_task(
            self._title,
            total=1.0,
            records=f"0/{num_records}",
            left="compiling ..." if self._first is None else "",
            visible=num_records > 0,
        )

    def call_done(self) -> None:
        """One call of the model has returned."""
        self.heard(1.0)
        self._calls += 1

    def record_done(self) -> None:
        """One record is kept."""
        self._records += 1
        self._bar.update(self._task, records=f"{self._records}/{self._total_records}")

    def end(self) -> None:
        """The evaluation is done."""
        self._bar.update(self._task, completed=1.0, left="")

    def heard(self, share: float) -> None:
        """So much of the present call of the model is done."""
        if not self._enabled:
            return
        now = self._clock()
        place = (self._number, self._calls, share)
        if self._first is None:
            self._first = (now, place)
        if self._bar.disable and now - self._last_line < INTERVAL:
            return
        self._last_line = now
        if self._weights is None:
            self._weights = self._weigh()
        total = self._done((len(self._weights), 0, 0.0))
        began, first_place = self._first
        left = seconds_left(
            now - began, self._done(place) - self._done(first_place), total - self._done(place)
        )
        left_text = "" if left is None else f"about {duration(left)} left"
        own = sum(self._weights[self._number])
        before = self._done((self._number, 0, 0.0))
        share_of_own = (self._done(place) - before) / own if own else 1.0
        self._bar.update(self._task, completed=share_of_own, left=left_text)
        if self._bar.disable:
            of_label = f" of {self._label}" if self._label else ""
            of_all = f"; {left_text} for all evaluations{of_label}" if left_text else ""
            line = (
                f"{self._title}: {share_of_own:.0%} read, {self._records} of "
                f"{self._total_records} records{of_all}"
            )
            print(printable_line(line), file=sys.stderr, flush=True)

    def _done(self, place: tuple[int, int, float]) -> float:
        """The weight of all that comes before (evaluation, call, share of that call)."""
        number, calls, share = place
        assert self._weights is not None
        before = sum(map(sum, self._weights[:number]))
        own = self._weights[number] if number < len(self._weights) else ()
        return before + sum(own[:calls]) + share * sum(own[calls : calls + 1])

    def __enter__(self) -> "EvaluationProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        now_at("")
        self._bar.stop()
