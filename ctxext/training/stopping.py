"""When a run saves and when it stops: by steps, minutes, signals and the caller.

The processes of a run agree: each says what it requests, and all do the largest request.
"""

import contextlib
import enum
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from ctxext.experiment import Train
from ctxext.parallel import distributed


class Request(enum.IntEnum):
    """A request of a process after a step; a larger one includes the smaller ones."""

    NOTHING = 0
    SAVE = 1
    STOP = 2
    INTERRUPT = 3
    TERMINATE = 4


EXIT_CODES = {Request.INTERRUPT: 130, Request.TERMINATE: 0}
"""Exit codes after Ctrl-C and after SIGTERM."""


class StoppingPolicy:
    """Decides after each step whether to save and whether to stop.

    received: the signals that have come so far, as `signals` lists them; stop: set by the caller.
    """

    def __init__(self, settings: Train, received: list[int], stop: threading.Event | None) -> None:
        self._settings = settings
        self._received = received
        self._stop = stop
        self._last_save = time.monotonic()
        self._polled: Any = Request.NOTHING
        self._request = int(Request.NOTHING)

    def poll(self) -> None:
        """Ask all processes for their requests.

        This is done before a step is started, so that the answer does not wait for that step.
        """
        self._polled = distributed.all_reduce_max(self._own_request())

    def after(self, done: int, requested: Request = Request.NOTHING) -> tuple[bool, bool]:
        """(save, stop) after step `done`, counted from 1.

        requested: what evaluations ask for, which is the same in every process.
        """
        # A single process need not have polled before the step: it is asked now.
        is_single = distributed.process_count() == 1
        polled = self._own_request() if is_single else int(self._polled)
        self._request = max(polled, requested)
        settings = self._settings
        save = (
            self._request >= Request.SAVE
            or done % settings.checkpoint_every == 0
            or done == settings.steps
        )
        if save:
            self._last_save = time.monotonic()
        return save, self._request >= Request.STOP

    def exit_code(self) -> int | None:
        """0 after SIGTERM, 130 after Ctrl-C, also in the last step; None if there was neither."""
        last_requests = int(distributed.all_reduce_max(self._own_request()))
        self._request = max(self._request, last_requests)
        return EXIT_CODES.get(Request(self._request))

    def _own_request(self) -> int:
        if self._received:
            is_sigterm = self._received[0] == signal.SIGTERM
            return int(Request.TERMINATE if is_sigterm else Request.INTERRUPT)
        if self._stop is not None and self._stop.is_set():
            return int(Request.STOP)
        return int(Request.SAVE if self._minutes_are_over() else Request.NOTHING)

    def _minutes_are_over(self) -> bool:
        """True if a checkpoint is due by the clock, which is that of the primary process."""
        minutes = self._settings.checkpoint_minutes
        if minutes is None or not distributed.is_primary():
            return False
        return time.monotonic() - self._last_save >= 60 * minutes


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """List the first SIGTERM or Ctrl-C instead of acting on it; a second one acts as usual.

    Outside the main thread, where Python handles no signals, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    handlers: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }

    def receive(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, handlers[number])
        # print is not safe in a signal handler.
        os.write(2, b"\nstopping after this step; once more stops at once\n")

    for number in handlers:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
