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
        self._bar = Progress(
            *columns, console=console, disable=not (enabled and console.is_terminal)
        )
        self._lines = enabled and not console.is_terminal
        self._task = self._bar.add_task(
            name, total=stop, completed=start, loss=float("nan"), speed=0.0
        )
        self._name, self._start, self._stop, self._clock = name, start, stop, time.perf_counter()

    def update(self, row: dict[str, Any]) -> None:
        """A row of metrics: moves the bar; on no terminal, a row with a speed is one line."""
        step, loss, speed = row["step"], row["loss"], row.get("tokens_per_second")
        self._bar.update(
            self._task, completed=step, loss=loss, **({} if speed is None else {"speed": speed})
        )
        if self._lines and "learning_rate" in row:
            left = (time.perf_counter() - self._clock) / (step - self._start) * (self._stop - step)
            rate = "" if speed is None else f"  {speed:,.0f} tokens/s"
            text = (
                f"{self._name}: step {step}/{self._stop}  loss {loss:.4f}{rate}  {left:.0f} s left"
            )
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> "TrainProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
