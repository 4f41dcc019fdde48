"""Progress on stderr: one bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainProgress:
    """Loss, tokens per second and time left of steps `start` to `stop`."""

    def __init__(self, name: str, start: int, stop: int, *, enabled: bool = True) -> None:
        console = Console(stderr=True)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        columns += [
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
        ]
        self._bar = Progress(*columns, console=console, disable=not (enabled and console.is_terminal))
        self._lines = enabled and not console.is_terminal
        self._task = self._bar.add_task(name, total=stop, completed=start, loss=float("nan"), speed=0.0)
        self._name, self._start, self._stop, self._clock = name, start, stop, time.perf_counter()

    def update(self, step: int, loss: float) -> None:
        self._bar.update(self._task, completed=step, loss=loss)

    def log(self, row: dict[str, Any]) -> None:
        """A row of metrics: on a terminal its speed, elsewhere one line."""
        self._bar.update(self._task, speed=row["tokens_per_second"])
        if self._lines:
            done = row["step"] - self._start
            left = (time.perf_counter() - self._clock) / done * (self._stop - row["step"])
            print(f"{self._name}: step {row['step']}/{self._stop}  loss {row['loss']:.4f}  "
                  f"{row['tokens_per_second']:,.0f} tokens/s  {left:.0f} s left", file=sys.stderr, flush=True)  # fmt: skip

    def __enter__(self) -> "TrainProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
