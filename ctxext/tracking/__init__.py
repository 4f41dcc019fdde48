"""Where measurements go: metrics.jsonl always, other trackers beside it. A tracker never stops a run."""

import contextlib
import functools
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ctxext.evals.record import EvalRecord
from ctxext.experiment import Experiment
from ctxext.parallel import distributed
from ctxext.rundir import RunDir
from ctxext.tracking.jsonl import Images, JsonlSink

__all__ = ["JsonlSink", "Sink", "TRACKERS", "kept_offline", "parse", "start_sinks"]


class Sink(Protocol):
    """Takes measurements; `finish` is called once, also when a run fails."""

    def log(self, row: dict[str, Any]) -> None:
        """One row of training metrics after `step` finished steps; an `alarm` is text for somebody to read."""

    def records(self, records: list[EvalRecord]) -> None:
        """Records of evaluations; the run itself keeps them in records.jsonl."""

    def images(self, draw: Callable[[], Images]) -> None:
        """Pictures by name, drawn only for those who show them."""

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        """Directories of a run that are worth keeping: referred to, never copied."""

    def finish(self, failed: bool = False) -> None:
        """No more rows will come."""


class Tracker(NamedTuple):
    """Where its sink is, and the package it needs with the extra that brings it."""

    sink: str
    package: str
    extra: str


TRACKERS = {
    "wandb": Tracker("ctxext.tracking.wandb:WandbSink", "wandb", ""),
    "tensorboard": Tracker(
        "ctxext.tracking.tensorboard:TensorBoardSink", "tensorboardX", "tensorboard"
    ),
    "trackio": Tracker("ctxext.tracking.trackio:TrackioSink", "trackio", "trackio"),
}


def parse(names: str) -> tuple[str, ...]:
    """ "wandb,tensorboard" as names. Raises ValueError for an unknown one, or one whose package is not installed."""
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    for name in found:
        if name not in TRACKERS:
            raise ValueError(f"--track: there is no tracker {name!r}; known: {', '.join(TRACKERS)}")
        if (tracker := TRACKERS[name]).extra and importlib.util.find_spec(tracker.package) is None:
            raise ValueError(
                f"--track {name} needs {tracker.package}: pip install 'ctxext[{tracker.extra}]'"
            )
    return found


OFFLINE = ("wandb/offline-run-*", "baselines/*/wandb/offline-run-*")
"""What wandb keeps in a run directory, and in those of its baselines."""


def kept_offline(run: Path) -> str:
    """The command that uploads what wandb keeps in a run directory; empty if there is nothing that is not uploaded."""
    waiting = [
        f"{shlex.quote(str(run))}/{pattern}"
        for pattern in OFFLINE
        if any(not list(path.glob("*.synced")) for path in run.glob(pattern))
    ]
    return f"wandb sync {' '.join(waiting)}" if waiting else ""


class Guarded:
    """A tracker whose first failure is one line on stderr; from then on it is told nothing but the end."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name, self._well = name, True
        self._sink: Sink | None = None
        self._safe(lambda: setattr(self, "_sink", make()))

    def log(self, row: dict[str, Any]) -> None:
        self._safe(lambda: self._sink and self._sink.log(row))

    def records(self, records: list[EvalRecord]) -> None:
        self._safe(lambda: self._sink and self._sink.records(records))

    def images(self, draw: Callable[[], Images]) -> None:
        self._safe(lambda: self._sink and self._sink.images(draw))

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        self._safe(lambda: self._sink and self._sink.artifact(kind, paths, facts))

    def finish(self, failed: bool = False) -> None:
        if self._well:
            self._safe(lambda: self._sink and self._sink.finish(failed))
        elif self._sink is not None:
            with contextlib.suppress(Exception):  # said already
                self._sink.finish(failed)

    def _safe(self, action: Callable[[], Any]) -> None:
        if not self._well:
            return
        try:
            action()
        except Exception as error:
            self._well = False
            reason = str(error).strip().partition("\n")[0]
            print(
                f"{self._name} is off for the rest of this run ({type(error).__name__}: {reason})",
                file=sys.stderr,
            )


@contextlib.contextmanager
def start_sinks(
    experiment: Experiment,
    run: RunDir,
    *,
    track: Sequence[str] = ("wandb",),
    group: str = "",
    job: str = "train",
) -> Iterator[list[Sink]]:
    """The sinks of a run, finished at the end of the block; of many processes only the first has any.

    group: what the run is compared with, by default all runs of an experiment's name; job: "train", "run" (with
    evaluations) or "baseline".
    """
    sinks: list[Sink] = [JsonlSink(run.metrics_file)] if distributed.is_primary() else []
    for name in parse(",".join(track)) if sinks else ():
        if name != "wandb" or (os.environ.get("WANDB_MODE") != "disabled" and not _taken(job)):
            arguments = (TRACKERS[name], experiment, run, group or experiment.name, job)
            sinks.append(Guarded(name, functools.partial(_make, *arguments)))
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


def _make(tracker: Tracker, experiment: Experiment, run: RunDir, group: str, job: str) -> Sink:
    module, _, sink = tracker.sink.partition(":")
    return getattr(importlib.import_module(module), sink)(experiment, run, group, job)


def _taken(job: str) -> bool:
    """A sweep's agent has made one run, which belongs to the experiment and not to its baselines."""
    return job == "baseline" and "WANDB_SWEEP_ID" in os.environ
