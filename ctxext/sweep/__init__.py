"""Run many experiments, each by the command that runs one; finished ones are not run again."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ctxext import report
from ctxext.files import exclusive_lock, make_parent, read_json, write_json
from ctxext.interop.validation import FINITE, TEXT, Shape, check_shape, optional
from ctxext.progress import duration
from ctxext.report.table import Column, Table
from ctxext.sweep.trial import Outcome, Resources, Trial, choose
from ctxext.sweep.watch import Watch
from ctxext.sweep.yaml import wandb_yaml

__all__ = ["Outcome", "Resources", "SweepResult", "Trial", "choose", "sweep", "wandb_yaml"]

Launcher = Callable[[Sequence[Trial], Resources], Iterator[Outcome]]
"""Runs trials and yields their outcomes in the order in which they end."""
OUTCOME: dict[str, Shape] = {
    "name": TEXT,
    "status": optional(FINITE),
    "command": [TEXT],
    "log": TEXT,
    "tail": TEXT,
}
COSTS: dict[str, Shape] = {"seconds": optional(FINITE), "at": TEXT}
"""What was not kept at first: it may be missing."""
STOPPED = 143
"""The status of a trial that SIGTERM has stopped, as shells have it: a run itself exits with 0."""


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The outcome of every trial, and the report on the successful ones, if there are any."""

    outcomes: dict[str, Outcome]
    runs: list[Path]
    page: Path | None

    @property
    def failed(self) -> list[str]:
        """Names of the trials that failed."""
        return [name for name, outcome in self.outcomes.items() if outcome.status]

    @property
    def data(self) -> dict[str, Any]:
        """Outcomes and the tables of the report, as JSON values."""
        tables = report.summary(report.read_records(self.runs)) if self.runs else {}
        outcomes = _as_data(self.outcomes)
        return {"trials": outcomes, "report": str(self.page) if self.page else None, **tables}

    @property
    def text(self) -> str:
        """Verdict and tables of the report, the end of the log of each failed trial, and costs."""
        lines = []
        if self.runs:
            records = report.read_records(self.runs)
            lines = [*report.verdict(records), "", report.tables(records), ""]
            lines.append(f"report: {self.page}")
        for name in self.failed:
            failure = self.outcomes[name]
            lines += [
                "",
                f"trial {name} failed with status {failure.status}; its log: {failure.log}",
                failure.tail,
            ]
        return "\n".join([*lines, "", self.costs().to_text()])

    def costs(self) -> Table[Outcome]:
        """A row for each trial: how it ended, and how long it took."""

        def seconds(outcome: Outcome) -> str:
            return "" if outcome.seconds is None else duration(outcome.seconds)

        def ending(outcome: Outcome) -> str:
            return f"failed, status {outcome.status}" if outcome.status else "done"

        outcomes = list(self.outcomes.values())
        total = sum(outcome.seconds or 0.0 for outcome in outcomes)
        finished = len(outcomes) - len(self.failed)
        return Table(
            f"{finished} of {len(outcomes)} trials are done; together they took {duration(total)}",
            [
                Column("trial", lambda outcome: outcome.name),
                Column("ended", ending),
                Column("took", seconds),
            ],
            outcomes,
        )


def sweep(trials: Sequence[Trial], out: Path, launcher: str, resources: Resources) -> SweepResult:
    """Run the trials that are not done yet, and write one report on all of them, OUT/report.html.

    OUT/sweep.json keeps the outcomes, and of trials that run what they are at. A trial is done if
    it has ended with status 0, and its evaluations too, with the same command. A trial that fails
    stops no other. Raises ValueError for an unknown launcher, where its library is missing, and if
    another process runs a sweep in OUT.
    """
    launch = _launcher(launcher)
    lock = out / ".lock"
    make_parent(lock)
    advice = "wait for it, stop it, or choose another --out"
    with exclusive_lock(lock, f"{out} is in use", advice):
        return _sweep(trials, out, launch, resources)


def _sweep(
    trials: Sequence[Trial], out: Path, launch: Launcher, resources: Resources
) -> SweepResult:
    outcomes_file = out / "sweep.json"
    earlier = _read_outcomes(outcomes_file) if outcomes_file.exists() else {}
    outcomes = {
        trial.name: Outcome(**earlier[trial.name])
        for trial in trials
        if trial.name in earlier and _is_done(trial, earlier[trial.name])
    }
    remaining = [trial for trial in trials if trial.name not in outcomes]
    before = {
        trial.name: earlier[trial.name].get("seconds") or 0.0
        for trial in remaining
        if trial.name in earlier and earlier[trial.name]["command"] == list(trial.command)
    }
    waiting = {trial.name: trial.outcome(None, at="waits") for trial in remaining}
    print(f"{len(remaining)} of {len(trials)} trials to run", file=sys.stderr)

    def keep(started: Mapping[str, Outcome]) -> None:
        write_json(outcomes_file, _as_data(waiting) | earlier | _as_data({**outcomes, **started}))

    by_name = {trial.name: trial for trial in trials}
    if remaining:
        with Watch(remaining, keep=keep, before=before) as watch:
            for outcome in launch(remaining, resources):
                outcomes[outcome.name] = watch.ended(_judged(outcome, by_name[outcome.name]))
    outcomes = {trial.name: outcomes[trial.name] for trial in trials}
    runs = [trial.run for trial in trials if not outcomes[trial.name].status]
    page = report.write_report(runs, out / "report.html") if runs else None
    return SweepResult(outcomes, runs, page)


def _judged(outcome: Outcome, trial: Trial) -> Outcome:
    """The outcome of a trial, which failed if something stopped it before its end."""
    if outcome.status == 0 and report.is_unfinished(trial.run):
        return trial.outcome(STOPPED, outcome.seconds)
    return outcome


def _as_data(outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}


def _read_outcomes(file: Path) -> dict[str, dict[str, Any]]:
    """The outcomes of trials by name. Raises ValueError naming the file if it is damaged."""
    outcomes = read_json(file)
    try:
        check_shape(outcomes, {"*": OUTCOME | COSTS}, "it")
        for name, outcome in outcomes.items():
            if outcome.keys() - COSTS.keys() != OUTCOME.keys():
                raise ValueError(f"{name:.50} must have {', '.join(OUTCOME)}")
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged: {error}; restore it, or remove it to run all trials again"
        ) from None
    return outcomes


def _is_done(trial: Trial, earlier: dict[str, Any]) -> bool:
    """Whether the trial has already succeeded with the same command."""
    same_command = earlier["command"] == list(trial.command)
    has_ended = trial.run.is_dir() and not report.is_unfinished(trial.run)
    return earlier["status"] == 0 and same_command and has_ended


def _launcher(name: str) -> Launcher:
    if name == "ray":
        from ctxext.sweep.ray import launch
    elif name in ("slurm", "submitit-local"):
        from ctxext.sweep.slurm import array, local_array

        launch = array if name == "slurm" else local_array
    elif name == "local":
        from ctxext.sweep.local import launch
    else:
        raise ValueError(f"there is no launcher {name!r}; known: local, ray, slurm, submitit-local")
    return launch
