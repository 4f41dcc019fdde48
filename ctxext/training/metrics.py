"""What training steps measured: read late, checked, and handed on as rows."""

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

    tokens_per_second: since the last row, the first step of a process and its compilation left out. mfu: the model's
    FLOPs of a step over what the devices could do in the time it took, `seconds_at_peak` x steps / seconds (arXiv
    2204.02311); there only where `seconds_at_peak` is.
    """

    def __init__(
        self,
        experiment: Experiment,
        report: Callable[[dict[str, Any]], None],
        seconds_at_peak: float | None = None,
    ) -> None:
        self._train, self._report, self._seconds_at_peak = experiment.train, report, seconds_at_peak
        self._learning_rate = experiment.optim.learning_rates(self._train.steps)
        self._waiting: tuple[int, dict[str, jax.Array]] | None = None
        self._clock, self._counted = 0.0, 0  # set when the first step is done
        self._losses: list[float] = []

    def put(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the step just started, read those of the one before."""
        before, self._waiting = self._waiting, (step, metrics)
        self._read(before)

    def flush(self) -> None:
        """Read what is waiting. Raises NotFinite if that step was not."""
        before, self._waiting = self._waiting, None
        self._read(before)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Time in this block belongs to no step. Raises NotFinite like `flush`."""
        self.flush()
        before = time.perf_counter()
        yield
        self._clock += time.perf_counter() - before

    def mean_loss(self) -> float | None:
        """Mean loss of the steps read since the last call, None if there are none."""
        losses, self._losses = self._losses, []
        return sum(losses) / len(losses) if losses else None

    def _read(self, waiting: tuple[int, dict[str, jax.Array]] | None) -> None:
        if waiting is None:
            return
        step, values = waiting[0], {name: float(value) for name, value in waiting[1].items()}
        if not all(map(math.isfinite, values.values())):
            raise NotFinite(
                f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}"
            )
        self._losses.append(values["loss"])
        row = {"step": step, **values}
        if step % self._train.log_every == 0 or step in (1, self._train.steps):
            row["learning_rate"] = float(np.asarray(self._learning_rate(step - 1)))
            row |= self._speed(step)
        elif not self._counted:
            self._speed(step)
        self._report(row)

    def _speed(self, step: int) -> dict[str, float]:
        """Of the steps since the last call; nothing at the first."""
        now, before, counted = time.perf_counter(), self._clock, self._counted
        self._clock, self._counted = now, step
        if not counted:
            return {}
        rate = (step - counted) / (now - before)
        tokens = self._train.accumulate * self._train.batch_size * self._train.seq_len
        mfu = {} if self._seconds_at_peak is None else {"mfu": self._seconds_at_peak * rate}
        return {"tokens_per_second": rate * tokens, **mfu}
