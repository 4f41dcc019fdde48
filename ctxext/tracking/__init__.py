"""Where measurements go: always to metrics.jsonl, and to the trackers of --track.

A tracker is a `Sink` in its own file with a row in TRACKERS. It never stops a run.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ctxext.evals.record import EvalRecord
from ctxext.evals.wrong_answers import WrongAnswer
from ctxext.experiment import Experiment
from ctxext.nearest import hint
from ctxext.parallel import distributed
from ctxext.rundir import RunDir
from ctxext.tracking.sink import Images, JsonlSink, Sink

__all__ = [
    "DEFAULT_TRACKERS",
    "TRACKERS",
    "JsonlSink",
    "Sink",
    "kept_offline",
    "parse_names",
    "start_sinks",
]


class Tracker(NamedTuple):
    """Where the sink is, the package that it needs, and the extra that installs it, if any."""

    sink: str
    package: str
    extra: str = ""

    def load(self) -> Any:
        """The class of the sink; it takes an experiment, its run directory, a group and a job."""
        module, _, name = self.sink.partition(":")
        return getattr(importlib.import_module(module), name)


TRACKERS = {
    "wandb": Tracker("ctxext.tracking.wandb:WandbSink", "wandb"),
    "tensorboard": Tracker(
        "ctxext.tracking.tensorboard:TensorBoardSink", "tensorboardX", "tensorboard"
    ),
    "trackio": Tracker("ctxext.tracking.trackio:TrackioSink", "trackio", "trackio"),
}
DEFAULT_TRACKERS = ("wandb",)


def parse_names(text: str) -> tuple[str, ...]:
    """The trackers of "wandb,tensorboard".

    Raises ValueError for an unknown one or a missing package.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--track: there is no tracker {name!r}; {hint(name, TRACKERS)}")
        tracker = TRACKERS[name]
        if tracker.extra and importlib.util.find_spec(tracker.package) is None:
            raise ValueError(
                f"--track {name} needs {tracker.package}: pip install 'ctxext[{tracker.extra}]'"
            )
    return names


def kept_offline(run: Path) -> str:
    """The command that uploads what trackers keep in a run directory; "" if nothing is left."""
    commands = [tracker.load().upload_command(run) for tracker in TRACKERS.values()]
    return " && ".join(command for command in commands if command)


@contextlib.contextmanager
def start_sinks(
    experiment: Experiment,
    run: RunDir,
    *,
    track: Sequence[str] = DEFAULT_TRACKERS,
    group: str = "",
    job: str = "train",
) -> Iterator[list[Sink]]:
    """The sinks of a run, finished at the end of the block. Only the primary process has any.

    group: the runs to compare this one with; by default all runs of the experiment's name.
    job: "train", "run" (which also evaluates) or "baseline".
    """
    sinks: list[Sink] = []
    if distributed.is_primary():
        sinks.append(JsonlSink(run.metrics_file))
        for name in parse_names(",".join(track)):
            sink = TRACKERS[name].load()
            if sink.is_enabled(job):
                open_sink = functools.partial(sink, experiment, run, group or experiment.name, job)
                sinks.append(GuardedSink(name, open_sink))
    failed = True
    try:
        yield sinks
        failed = False
    except SystemExit as stopped:  # a run that was asked to stop has not failed
        failed = bool(stopped.code)
        raise
    finally:
        for sink in sinks:
            sink.finish(failed)


class GuardedSink(Sink):
    """A tracker whose first failure prints one line on stderr and turns it off."""

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        self._name = name
        self._open = open_sink
        self._sink: Sink | None = None
        self._failed = False
        self._guard(lambda sink: None)

    def log(self, row: dict[str, Any]) -> None:
        self._guard(lambda sink: sink.log(row))

    def records(self, records: list[EvalRecord]) -> None:
        self._guard(lambda sink: sink.records(records))

    def wrong_answers(self, step: int, answers: Sequence[WrongAnswer]) -> None:
        self._guard(lambda sink: sink.wrong_answers(step, answers))

    def images(self, draw: Callable[[], Images]) -> None:
        self._guard(lambda sink: sink.images(draw))

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        self._guard(lambda sink: sink.artifact(kind, paths, facts))

    def finish(self, failed: bool = False) -> None:
        """Finish the tracker, also one that has failed, if it was ever opened."""
        if not self._failed:
            self._guard(lambda sink: sink.finish(failed))
        elif self._sink is not None:
            with contextlib.suppress(Exception):  # its failure has been printed already
                self._sink.finish(failed)

    def _guard(self, action: Callable[[Sink], None]) -> None:
        """Run the action on the sink, opened if need be, unless the tracker is off."""
        if self._failed:
            return
        try:
            if self._sink is None:
                self._sink = self._open()
            action(self._sink)
        except Exception as error:
            self._failed = True
            reason = str(error).strip().partition("\n")[0]
            print(
                f"{self._name} is off for the rest of this run ({type(error).__name__}: {reason})",
                file=sys.stderr,
            )
