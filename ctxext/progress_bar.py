"""Progress bars on the terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ctxext.progress import (
    duration,
    heard_by,
    left_text,
    now_at,
    parts_heard_by,
    seconds_left,
)
from ctxext.terminal import PrintableStream, printable_line, raw_stream

SPEED_PERIOD = 600.0
"""Seconds of the past that the time left is estimated from: more than a slow step takes."""
INTERVAL = 60.0
"""Seconds between two lines on work that is counted, where there is no terminal."""


class TerminalBar(Progress):
    """A bar on standard error, if that is a terminal; what is printed meanwhile appears above it.

    `details`: a format of the fields of a task, which follows its count. `counts`: show how many of
    how many are done, and the time left at that pace; otherwise `details` say so. `transient`: it
    disappears when it is done. The name of a task is to be `printable`.
    """

    def __init__(
        self, *, enabled: bool, details: str = "", counts: bool = True, transient: bool = False
    ) -> None:
        console = Console(file=raw_stream(sys.stderr))
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *([MofNCompleteColumn()] if counts else []),
            *([TextColumn(details)] if details else []),
            *([TimeRemainingColumn()] if counts else []),
            console=console,
            speed_estimate_period=SPEED_PERIOD,
            transient=transient,
            disable=not (enabled and console.is_terminal),
        )

    def start(self) -> None:
        """Show the bar."""
        super().start()
        if not self.disable:
            # rich has put its own streams in place of the printable ones, until the bar stops.
            sys.stdout = PrintableStream(sys.stdout)
            sys.stderr = PrintableStream(sys.stderr)


class WorkBar:
    """A bar for work that is not counted: the part that it is at, how far that is, its seconds.

    And those that are left of the part, at its pace so far.
    """

    def __init__(
        self, name: str, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        details = "{task.elapsed:.0f} s{task.fields[left]}"
        self._bar = TerminalBar(enabled=enabled, details=details, counts=False, transient=True)
        self._name = printable_line(name)
        self._clock = clock
        self._began = clock()
        self._task = self._bar.add_task(self._name, total=None, left="")

    @property
    def is_visible(self) -> bool:
        """Whether there is a terminal to draw on."""
        return not self._bar.disable

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """In the block, the bar hears what the work tells; without a terminal, nothing changes."""
        if not self.is_visible:
            yield
            return
        with self._bar, heard_by(self._hear), parts_heard_by(self._begin):
            yield

    def _hear(self, share: float) -> None:
        left = left_text(self._clock() - self._began, share)
        self._bar.update(self._task, completed=share, total=1.0, left=left)

    def _begin(self, part: str) -> None:
        self._bar.remove_task(self._task)
        self._began = self._clock()
        is_named = bool(part) and printable_line(part) != self._name
        name = f"{self._name}: {printable_line(part)}" if is_named else self._name
        self._task = self._bar.add_task(name, total=None, left="")


class CountedWork:
    """Progress of work that is counted: a bar, or a line a minute without a terminal.

    unit: what is counted, in the plural. Use it as a context manager.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        *,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bar = TerminalBar(enabled=enabled, details="{task.fields[at]}", transient=True)
        self._prints_lines = enabled and self._bar.disable
        self._name = printable_line(name)
        self._total = total
        self._unit = unit
        self._clock = clock
        self._done = 0
        self._first: tuple[float, int] | None = None
        self._last_line = clock()
        self._task = self._bar.add_task(self._name, total=total, at="", visible=total > 0)

    def begin(self, item: str) -> None:
        """The next one begins, which has a name."""
        now_at(item)
        self._bar.update(self._task, at=printable_line(item))

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        self._bar.update(self._task, completed=self._done)
        now = self._clock()
        if self._first is None:  # before it, programs were compiled
            self._first = (now, self._done)
        if self._prints_lines and now - self._last_line >= INTERVAL:
            self._last_line = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        assert self._first is not None
        began, done = self._first
        left = seconds_left(now - began, self._done - done, self._total - self._done)
        left_text = "" if left is None else f", about {duration(left)} left"
        return f"{self._name}: {self._done:,} of {self._total:,} {self._unit}{left_text}"

    def __enter__(self) -> "CountedWork":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        now_at("")
        self._bar.stop()
