"""Reports of a run while it trains: progress on stderr, rows of metrics to the trackers."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

from ctxext.experiment import Experiment
from ctxext.parallel import distributed
from ctxext.progress import now_at
from ctxext.progress_bar import TerminalBar
from ctxext.terminal import printable_line
from ctxext.tracking import Sink
from ctxext.training.curve import is_loss
from ctxext.training.evaluator import Evaluation


@dataclasses.dataclass
class TimeEvaluating:
    """How much of the time of a training went into evaluations."""

    started: float
    seconds: float = 0.0
    times: int = 0

    def __bool__(self) -> bool:
        return self.times > 0

    @property
    def note(self) -> str:
        share = self.seconds / max(time.perf_counter() - self.started, 1e-9)
        took = f"{self.seconds:.0f} s, {share:.0%} of the time"
        return f"evaluations during training: {self.times} in {took}"


class TrainLog:
    """Passes rows of metrics on to a progress display and to the trackers; a context manager."""

    def __init__(
        self, experiment: Experiment, start: int, sinks: Sequence[Sink], *, progress: bool
    ) -> None:
        steps = experiment.train.steps
        self._progress = TrainProgress(experiment.name, start, steps, enabled=progress)
        self._sinks = sinks
        self._name = printable_line(experiment.name)
        self._shows = progress
        self.evaluating = TimeEvaluating(time.perf_counter())

    def evaluation(self, evaluation: Evaluation) -> None:
        """Print the values of an evaluation; send them and its wrong answers to the trackers."""
        step, values = evaluation.values
        self.evaluating.seconds += evaluation.seconds
        self.evaluating.times += 1
        if self._shows:
            listed = ", ".join(f"{name} {_value(name, value)}" for name, value in values.items())
            print(f"{self._name}: step {step}  {listed}", file=sys.stderr, flush=True)
        self.write(evaluation.row)
        for sink in self._sinks:
            sink.wrong_answers(step, evaluation.wrong)

    def step(self, row: dict[str, Any]) -> None:
        """Show the row of a step; one that is due for logging has a learning rate and is kept."""
        self._progress.update(row)
        if "learning_rate" in row:
            self.write(row)

    def write(self, row: dict[str, Any]) -> None:
        """Send a row to the trackers, and print its alarm if it has one."""
        if "alarm" in row and distributed.is_primary():
            print(f"alarm: {row['alarm']}", file=sys.stderr)
        for sink in self._sinks:
            sink.log(row)

    def __enter__(self) -> "TrainLog":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _speed(row: dict[str, Any]) -> str:
    """The speed in a row of metrics, if it has one."""
    speed, mfu = row.get("tokens_per_second"), row.get("mfu")
    of_peak = "" if mfu is None else f"  MFU {mfu:.0%}"
    return "" if speed is None else f"  {speed:,.0f} tokens/s{of_peak}"


def _value(name: str, value: float) -> str:
    return f"{value:.4f}" if is_loss(name) else f"{value:.0%}"


class TrainProgress:
    """Loss, tokens per second, MFU and time left of steps `start` to `stop`.

    One bar on a terminal, plain lines elsewhere, nothing unless `enabled`. What is not known yet is
    not shown; before the first step the bar says that its program is compiled.
    """

    def __init__(self, name: str, start: int, stop: int, *, enabled: bool) -> None:
        self._bar = TerminalBar(enabled=enabled, details="{task.fields[state]}")
        self._prints_lines = enabled and self._bar.disable
        self._task = self._bar.add_task(
            printable_line(name), total=stop, completed=start, state="compiling ..."
        )
        self._speed = ""
        self._name = printable_line(name)
        self._first = start
        self._last = stop
        self._started: float | None = None

    def update(self, row: dict[str, Any]) -> None:
        """Move the bar to the step of a row; off a terminal, print a line for a logged row."""
        loss = f"loss {row['loss']:.4f}"
        self._speed = _speed(row) or self._speed
        self._bar.update(self._task, completed=row["step"], state=f"{loss}{self._speed}")
        if self._prints_lines and "learning_rate" in row:
            print(self._line(row["step"], f"{loss}{_speed(row)}"), file=sys.stderr, flush=True)
        now_at(f"after step {row['step']} of {self._last}")
        if self._started is None:  # the first step is compiled first
            self._started = time.perf_counter()

    def _line(self, step: int, state: str) -> str:
        left = ""
        if self._started is not None and step > self._first + 1:
            seconds_per_step = (time.perf_counter() - self._started) / (step - self._first - 1)
            left = f"  {seconds_per_step * (self._last - step):.0f} s left"
        return f"{self._name}: step {step}/{self._last}  {state}{left}"

    def start(self) -> None:
        """Show the bar."""
        now_at("compiling the first step")
        self._bar.start()

    def stop(self) -> None:
        """Leave the bar as it is and free the terminal."""
        now_at("")
        self._bar.stop()
