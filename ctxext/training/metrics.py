"""Metrics of training steps: read late, checked to be finite, handed on as rows."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ctxext.experiment import Experiment


class NotFinite(ValueError):
    """The loss or its gradient became NaN or infinite."""


class Metrics:
    """Metrics of steps, read one step late so that the device never waits for the host.

    Rows go to `report`; every `log_every` steps they hold the learning rate and the speed.
    tokens_per_second is measured since the last such row, without the first step of a process,
    which compiles. mfu is the share of the devices' peak that the model's FLOPs take, steps per
    second x `seconds_at_peak` (arXiv 2204.02311); without `seconds_at_peak` there is none.
    """

    def __init__(
        self,
        experiment: Experiment,
        report: Callable[[dict[str, Any]], None],
        seconds_at_peak: float | None = None,
    ) -> None:
        self._train = experiment.train
        self._report = report
        self._seconds_at_peak = seconds_at_peak
        self._learning_rate = experiment.optim.learning_rates(self._train.steps)
        self._unread: tuple[int, dict[str, jax.Array]] | None = None
        self._losses: list[float] = []
        # When and at which step the speed was last measured; step 0 until the first one is done.
        self._clock = 0.0
        self._clock_step = 0

    def record(self, step: int, values: dict[str, jax.Array]) -> None:
        """Take the metrics of the step just started; read those of the one before.

        Raises NotFinite if the step before was not finite.
        """
        before = self._unread
        self._unread = (step, values)
        self._read(before)

    def flush(self) -> None:
        """Read the step that is not read yet. Raises NotFinite if it was not finite."""
        before = self._unread
        self._unread = None
        self._read(before)

    @contextlib.contextmanager
    def exclude(self) -> Iterator[None]:
        """Count the time of this block to no step. Raises NotFinite like `flush`."""
        self.flush()
        start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - start

    def mean_loss(self) -> float | None:
        """Mean loss of the steps read since the last call, None if there are none."""
        losses = self._losses
        self._losses = []
        return sum(losses) / len(losses) if losses else None

    def _read(self, unread: tuple[int, dict[str, jax.Array]] | None) -> None:
        if unread is None:
            return
        step, arrays = unread
        values = {name: float(value) for name, value in arrays.items()}
        if not all(map(math.isfinite, values.values())):
            raise NotFinite(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}"
            )
        self._losses.append(values["loss"])
        row = {"step": step, **values}
        if step % self._train.log_every == 0 or step in (1, self._train.steps):
            row["learning_rate"] = float(np.asarray(self._learning_rate(step - 1)))
            row |= self._speed(step)
        elif not self._clock_step:
            self._speed(step)
        self._report(row)

    def _speed(self, step: int) -> dict[str, float]:
        """The speed of the steps since the last call; nothing at the first."""
        last_clock, last_step = self._clock, self._clock_step
        self._clock, self._clock_step = time.perf_counter(), step
        if not last_step:
            return {}
        steps_per_second = (step - last_step) / (self._clock - last_clock)
        tokens = self._train.accumulate * self._train.batch_size * self._train.seq_len
        speed = {"tokens_per_second": steps_per_second * tokens}
        if self._seconds_at_peak is not None:
            speed["mfu"] = self._seconds_at_peak * steps_per_second
        return speed
