"""When to save and when to stop: steps, minutes, signals and the caller, agreed between the processes."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from ctxext.experiment import Train
from ctxext.parallel import distributed

NOTHING, SAVE, STOP, INTERRUPT, TERMINATE = range(5)
"""What a process may wish for after a step; the largest wish of all processes is done by all."""


class Agenda:
    """What comes after each step; `noted` holds the signals that came."""

    def __init__(self, settings: Train, noted: list[int], stop: threading.Event | None) -> None:
        self._settings, self._noted, self._stop = settings, noted, stop
        self._saved = time.monotonic()
        self._question: Any = NOTHING
        self._wish = NOTHING

    def ask(self) -> None:
        """Ask the other processes, before a step is started, so that the answer does not wait for that step."""
        self._question = distributed.all_reduce_max(self._own())

    def after(self, done: int) -> tuple[bool, bool]:
        """(save, stop) after step `done`."""
        # A process that is alone need not have asked in advance.
        self._wish = int(self._question) if distributed.process_count() > 1 else self._own()
        stop = self._wish >= STOP
        save = (
            self._wish >= SAVE
            or done % self._settings.checkpoint_every == 0
            or done == self._settings.steps
        )
        if save:
            self._saved = time.monotonic()
        return save, stop

    def exit_code(self) -> int | None:
        """What the process is to exit with: 0 after SIGTERM, 130 after Ctrl-C, None if there was neither."""
        self._wish = max(
            self._wish, int(distributed.all_reduce_max(self._own()))
        )  # also of a signal in the last step
        return {TERMINATE: 0, INTERRUPT: 130}.get(self._wish)

    def _own(self) -> int:
        if self._noted:
            return TERMINATE if self._noted[0] == signal.SIGTERM else INTERRUPT
        if self._stop is not None and self._stop.is_set():
            return STOP
        minutes = self._settings.checkpoint_minutes
        due = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        return SAVE if due and distributed.is_primary() else NOTHING


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """The first SIGTERM or Ctrl-C is noted in the list, a second one acts as usual."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }

    def note(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])
        os.write(
            2, b"\nstopping after this step; once more stops at once\n"
        )  # print is not safe in a handler

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
