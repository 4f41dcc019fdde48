"""What training steps measured: read late, checked, and handed on as rows."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ctxext.experiment import Experiment


class NotFinite(ValueError):
    """The loss or its gradient became NaN or infinite."""


class Measured:
    """Metrics of steps, read one step late so that the device never waits for the host."""

    def __init__(self, experiment: Experiment, start: int, report: Callable[[dict[str, Any]], None]) -> None:
        self._train, self._report = experiment.train, report
        self._learning_rate = experiment.optim.learning_rates(self._train.steps)
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self._clock, self._counted = time.perf_counter(), start
        self._losses: list[float] = []

    def put(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the step just started, read those of the one before."""
        before, self._waiting = self._waiting, (step, metrics)
        self._read(before)

    def flush(self) -> None:
        """Read what is waiting. Raises NotFinite if that step was not."""
        before, self._waiting = self._waiting, None
        self._read(before)

    def mean_loss(self) -> float | None:
        """Mean loss of the steps read since the last call, None if there are none."""
        losses, self._losses = self._losses, []
        return sum(losses) / len(losses) if losses else None

    def _read(self, waiting: tuple[int, dict[str, jax.Array]] | None) -> None:
        if waiting is None:
            return
        step, values = waiting[0], {name: float(value) for name, value in waiting[1].items()}
        if not all(map(math.isfinite, values.values())):
            raise NotFinite(f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}")
        self._losses.append(values["loss"])
        row = {"step": step, **values}
        if step % self._train.log_every == 0 or step in (1, self._train.steps):
            now, tokens = time.perf_counter(), self._train.accumulate * self._train.batch_size * self._train.seq_len
            row["learning_rate"] = float(np.asarray(self._learning_rate(step - 1)))
            row["tokens_per_second"] = (step - self._counted) * tokens / (now - self._clock)
            self._clock, self._counted = now, step
        self._report(row)
