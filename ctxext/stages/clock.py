"""The clock of a run: which stage it is in, what is left in all, and how long each stage took."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

from ctxext.files import write_json
from ctxext.parallel import distributed
from ctxext.progress import duration, part
from ctxext.progress_bar import WorkBar
from ctxext.rundir import RunDir
from ctxext.stages.estimate import Estimate
from ctxext.terminal import printable_line

COMPUTING = ("train", "evaluate")
"""The kinds of stages whose time is that of the device."""
WITHOUT_BARS = ("export", "prove", "report")
"""The kinds of stages that show no bar themselves."""


@dataclasses.dataclass
class StageClock:
    """Times the stages of an estimate, which begin in its order, and keeps both in the run.

    What is left is the estimate of the stages to come, times how much longer than estimated those
    before them took: of the same kind, or of all that compute.
    """

    estimate: Estimate
    run: RunDir
    took: dict[int, float] = dataclasses.field(default_factory=dict)
    """Seconds by the number of the stage."""

    @contextlib.contextmanager
    def stage(self, kind: str) -> Iterator[None]:
        """The next stage of this kind: say which one it is, and time it."""
        number = self._next(kind)
        stage = self.estimate.stages[number]
        if not stage.is_done:
            _print(self._beginning(number))
        started = time.monotonic()
        bar = WorkBar(stage.name, enabled=kind in WITHOUT_BARS)
        with part(stage.name), bar.shown():
            yield  # what is interrupted has not ended
        self.took[number] = time.monotonic() - started
        self._write()

    def passed(self, kind: str, seconds: float) -> None:
        """A stage that was over before the estimate could be made."""
        self.took[self._next(kind)] = seconds
        self._write()

    def again(self, kind: str) -> None:
        """Do a stage that has ended a second time: it begins anew."""
        last = max(n for n in self.took if self.estimate.stages[n].kind == kind)
        del self.took[last]

    def left(self) -> float | None:
        """Estimated seconds of the stages that have not ended; None if they are not known."""
        total = 0.0
        for number, stage in enumerate(self.estimate.stages):
            if number in self.took or stage.is_done:
                continue
            if stage.seconds is None:
                return None
            total += stage.seconds * self._slower(stage.kind)
        return total

    def summary(self) -> list[str]:
        """What every stage took, and the whole, against the estimate if there was one."""
        stages = [
            (stage, self.took[number])
            for number, stage in enumerate(self.estimate.stages)
            if number in self.took and not stage.is_done
        ]
        if not stages:
            return []
        width = max(len(stage.name) for stage, _ in stages)
        if all(stage.seconds is None for stage, _ in stages):
            rows = [("stage", "took")]
            rows += [(stage.name, duration(took)) for stage, took in stages]
            rows.append(("in all", duration(sum(took for _, took in stages))))
            return [printable_line(f"{name:<{width}}  {took:>7}") for name, took in rows]
        lines = [f"{'stage':<{width}}  {'estimated':>9}  {'took':>7}"]
        for stage, took in stages:
            estimated = "" if stage.seconds is None else duration(stage.seconds)
            lines.append(f"{stage.name:<{width}}  {estimated:>9}  {duration(took):>7}")
        estimated = sum(stage.seconds or 0.0 for stage, _ in stages)
        took = sum(seconds for _, seconds in stages)
        lines.append(
            f"{'in all':<{width}}  {duration(estimated):>9}  {duration(took):>7}, "
            f"{took / estimated:.2f} times the estimate"
        )
        return [printable_line(line) for line in lines]

    def _next(self, kind: str) -> int:
        return next(
            number
            for number, stage in enumerate(self.estimate.stages)
            if stage.kind == kind and number not in self.took
        )

    def _beginning(self, number: int) -> str:
        stage = self.estimate.stages[number]
        left = self.left()
        times = ""
        if left is not None and stage.seconds is not None:
            now = stage.seconds * self._slower(stage.kind)
            times = f": about {duration(now)}, {duration(left)} left in all"
        return f"stage {number + 1} of {len(self.estimate.stages)}, {stage.name}{times}"

    def _slower(self, kind: str) -> float:
        """How many times longer than estimated the stages of a kind took so far.

        Before one of them has ended, it is that of all that compute.
        """
        for kinds in ((kind,), COMPUTING):
            ended = [
                (stage.seconds, self.took[number])
                for number, stage in enumerate(self.estimate.stages)
                if stage.kind in kinds
                and stage.seconds
                and number in self.took
                and not stage.is_done
            ]
            if ended:
                return sum(took for _, took in ended) / sum(seconds for seconds, _ in ended)
        return 1.0

    @distributed.primary_only
    def _write(self) -> None:
        write_json(self.run.stages_file, self.data())

    def data(self) -> dict[str, Any]:
        """As JSON values: the stages with both times, and the speeds that they rest on."""
        speeds = self.estimate.speeds
        return {
            "basis": self.estimate.basis,
            "stages": [
                {
                    "kind": stage.kind,
                    "name": stage.name,
                    "amount": stage.amount,
                    "estimated": stage.seconds,
                    "took": self.took.get(number),
                }
                for number, stage in enumerate(self.estimate.stages)
            ],
            "speeds": None if speeds is None else speeds.data(),
        }


def _print(text: str) -> None:
    print(printable_line(text), file=sys.stderr, flush=True)
