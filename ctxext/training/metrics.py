"""Metrics of training steps: read late, checked to be finite, handed on as rows."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ctxext.experiment import Experiment
from ctxext.peak_memory import peaks


class NotFinite(ValueError):
    """The loss or its gradient became NaN or infinite."""


class Metrics:
    """Metrics of steps, read one step late so that the device does not wait for the host.

    Rows go to `report`; every `log_every` steps they hold the learning rate, the speed and the most
    memory used so far (`peak_memory`). The step of such a row is waited for, so that its end can be
    timed.
    tokens_per_second is measured from the end of the last such step to the end of this one, without
    the first step of a process, which compiles. mfu is the share of the devices' peak that the
    model's FLOPs take, steps per second x `seconds_at_peak` (arXiv 2204.02311); without
    `seconds_at_peak` there is none.
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
        # The end and the number of the last timed step; step 0 before the first one.
        self._clock = 0.0
        self._clock_step = 0

    def record(self, step: int, values: dict[str, jax.Array]) -> None:
        """Take the metrics of the step just started; read those of the one before.

        The metrics of a step whose end is timed are read at once. Raises NotFinite if a step that
        was read was not finite.
        """
        self.flush()
        self._unread = (step, values)
        if self._is_timed(step):
            self.flush()

    def flush(self) -> None:
        """Read the step that is not read yet. Raises NotFinite if it was not finite."""
        if self._unread is None:
            return
        step, values = self._unread
        self._unread = None
        self._read(step, values)

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

    def _is_logged(self, step: int) -> bool:
        return step % self._train.log_every == 0 or step in (1, self._train.steps)

    def _is_timed(self, step: int) -> bool:
        """Whether the speed is measured up to this step or from it on."""
        return self._is_logged(step) or not self._clock_step

    def _read(self, step: int, arrays: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in arrays.items()}  # waits for the step
        now = time.perf_counter()
        if not all(map(math.isfinite, values.values())):
            raise NotFinite(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}"
            )
        self._losses.append(values["loss"])
        row = {"step": step, **values}
        if self._is_logged(step):
            row["learning_rate"] = float(np.asarray(self._learning_rate(step - 1)))
            row |= peaks()
        if self._is_timed(step):
            row |= self._speed(step, now)
        self._report(row)

    def _speed(self, step: int, now: float) -> dict[str, float]:
        """The speed of the steps since the last call; nothing at the first."""
        seconds = now - self._clock
        steps = step - self._clock_step
        is_first = not self._clock_step
        self._clock = now
        self._clock_step = step
        if is_first:
            return {}
        steps_per_second = steps / seconds
        tokens = self._train.accumulate * self._train.batch_size * self._train.seq_len
        speed = {"tokens_per_second": steps_per_second * tokens}
        if self._seconds_at_peak is not None:
            speed["mfu"] = self._seconds_at_peak * steps_per_second
        return speed
