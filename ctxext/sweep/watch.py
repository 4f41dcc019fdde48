"""What the trials of a sweep are at, while they run: bars on a terminal, elsewhere lines.

Wherever a launcher runs a trial, its log says it. A trial runs from when its log grows.
"""

import contextlib
import dataclasses
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxext.progress import duration
from ctxext.progress_bar import TerminalBar
from ctxext.sweep.trial import Outcome, Trial
from ctxext.terminal import printable_line

LOOK = 2.0
"""Seconds between two looks at the logs."""
INTERVAL = 60.0
"""Seconds between two lines on a trial."""
END = 1 << 14
"""Bytes of a log that are read."""
STAGE = re.compile(r"stage \d+ of \d+, .*")


def said_last(log: str) -> str:
    """The stage in which a trial is, and the last line of its log."""
    lines = [line for line in log.splitlines() if line.strip()]
    stages = [line for line in lines if STAGE.fullmatch(line)]
    return printable_line("; ".join(dict.fromkeys([*stages[-1:], *lines[-1:]])))


class Watch:
    """Follows trials by their logs; a context manager around the launcher.

    keep: takes the outcomes of all that have started, whenever they may have changed. before:
    seconds that earlier starts of a trial took, by its name.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        *,
        keep: Callable[[Mapping[str, Outcome]], None],
        before: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._keep = keep
        self._before = before
        self._waiting = {trial.name: trial for trial in trials}
        self._size_before = {trial.name: _size(trial.log) for trial in trials}
        self._running: dict[str, Trial] = {}
        self._started: dict[str, float] = {}
        self._ended: dict[str, Outcome] = {}
        self._most_at_once = 1
        self._last_lines = clock()
        self._lock = threading.RLock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_again_and_again, daemon=True)
        self._bar = TerminalBar(
            enabled=True, details="{task.fields[at]}", counts=False, transient=True
        )
        self._whole = self._bar.add_task("sweep", total=len(trials), at=self.summary())
        self._bars: dict[str, Any] = {}

    def summary(self) -> str:
        """How many trials have ended, failed, run, and how long the rest will take."""
        failed = sum(bool(outcome.status) for outcome in self._ended.values())
        total = len(self._ended) + len(self._running) + len(self._waiting)
        text = f"{len(self._ended)} of {total} trials have ended"
        if failed:
            text += f", {failed} failed"
        left = self._seconds_left()
        return text if left is None else f"{text}, about {duration(left)} left"

    def ended(self, outcome: Outcome) -> Outcome:
        """A trial has ended: say so; returns the outcome with the seconds of earlier starts."""
        with self._lock:
            name = outcome.name
            self._waiting.pop(name, None)
            self._running.pop(name, None)
            took = outcome.seconds
            if took is None and name in self._started:  # a job that was lost
                took = self._clock() - self._started[name]
            if took is not None:
                took += self._before.get(name, 0.0)
            outcome = dataclasses.replace(outcome, seconds=took)
            self._ended[name] = outcome
            if name in self._bars:
                self._bar.remove_task(self._bars.pop(name))
            self._bar.update(self._whole, completed=len(self._ended))
            _print(f"trial {name}: {outcome.text}; {self.summary()}")
            self.look()
            return outcome

    def look(self) -> None:
        """Read the logs, show what the trials are at, and let it be kept."""
        with self._lock:
            now = self._clock()
            for name, trial in list(self._waiting.items()):
                if _size(trial.log) != self._size_before[name]:
                    self._running[name] = self._waiting.pop(name)
                    self._started[name] = now
                    self._bars[name] = self._bar.add_task(printable_line(name), total=None, at="")
            self._most_at_once = max(self._most_at_once, len(self._running))
            outcomes = {name: self._so_far(trial, now) for name, trial in self._running.items()}
            for name, outcome in outcomes.items():
                self._bar.update(self._bars[name], at=outcome.at)
            self._bar.update(self._whole, at=self.summary())
            self._keep(self._ended | outcomes)
            if self._bar.disable and now - self._last_lines >= INTERVAL:
                self._last_lines = now
                _print(f"sweep: {self.summary()}")
                for name, outcome in outcomes.items():
                    _print(f"trial {name}, {duration(outcome.seconds or 0)}: {outcome.at}")

    def _so_far(self, trial: Trial, now: float) -> Outcome:
        """A trial that runs, with the last that it said since it started."""
        new = _size(trial.log) - max(0, self._size_before[trial.name])
        text = _end(trial.log, min(max(new, 0), END))
        seconds = self._before.get(trial.name, 0.0) + now - self._started[trial.name]
        return trial.outcome(None, seconds, said_last(text))

    def _seconds_left(self) -> float | None:
        """At the mean time of those that have succeeded, as many at once as there were."""
        ended = self._ended.values()
        times = [x.seconds for x in ended if not x.status and x.seconds is not None]
        left = len(self._running) + len(self._waiting)
        if not times or not left:
            return None
        mean = sum(times) / len(times)
        now = self._clock()
        done = sum(min(mean, now - self._started[name]) for name in self._running)
        return (mean * left - done) / min(self._most_at_once, left)

    def _look_again_and_again(self) -> None:
        while not self._is_over.wait(LOOK):
            with contextlib.suppress(OSError):  # such as a full disk, which stops the sweep itself
                self.look()

    def __enter__(self) -> "Watch":
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.look()
        self._bar.stop()


def _size(file: Path) -> int:
    """Bytes of a file; -1 if it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _end(file: Path, size: int) -> str:
    """The last bytes of a file as text; "" if it cannot be read."""
    try:
        with file.open("rb") as log:
            log.seek(-size, os.SEEK_END)
            return log.read(size).decode(errors="replace")
    except OSError:
        return ""


def _print(text: str) -> None:
    print(printable_line(text), file=sys.stderr, flush=True)
