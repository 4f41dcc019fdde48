"""Many experiments: each by the command that runs one, wherever there is room; what is done is not done again."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext import report
from ctxext.files import read_json, write_json
from ctxext.sweep.trial import Outcome, Resources, Trial
from ctxext.sweep.yaml import wandb_yaml

__all__ = ["Outcome", "Resources", "Swept", "Trial", "sweep", "wandb_yaml"]

Launcher = Callable[[Sequence[Trial], Resources], Iterator[Outcome]]
"""Runs trials, and yields what became of each as it ends, whichever ends first."""


@dataclasses.dataclass(frozen=True)
class Swept:
    """Every trial's outcome, and the report over those that ended well (None if none did)."""

    outcomes: dict[str, Outcome]
    runs: list[Path]
    page: Path | None

    @property
    def failed(self) -> list[str]:
        """Names of the trials that did not end well."""
        return [name for name, outcome in self.outcomes.items() if outcome.status]

    @property
    def data(self) -> dict[str, Any]:
        """Outcomes and the report's tables."""
        tables = report.summary(report.read_records(self.runs)) if self.runs else {}
        outcomes = {name: dataclasses.asdict(outcome) for name, outcome in self.outcomes.items()}
        return {"trials": outcomes, "report": str(self.page) if self.page else None, **tables}

    @property
    def text(self) -> str:
        """Verdict and tables over the trials, and the end of the log of each that failed."""
        lines = []
        if self.runs:
            records = report.read_records(self.runs)
            lines = [*report.verdict(records), "", report.tables(records), ""]
            lines.append(f"report: {self.page}")
        for name in self.failed:
            one = self.outcomes[name]
            lines += [
                "",
                f"trial {name} failed with status {one.status}; its log: {one.log}",
                one.tail,
            ]
        done = len(self.outcomes) - len(self.failed)
        return "\n".join([*lines, "", f"{done} of {len(self.outcomes)} trials are done"])


def sweep(trials: Sequence[Trial], out: Path, launcher: str, resources: Resources) -> Swept:
    """Run the trials that are not done yet, and write one report over all that are, OUT/report.html.

    OUT/sweep.json holds what became of each; a trial is done if it ended well with the same command. A trial that fails
    stops no other. Raises ValueError for an unknown launcher, and where its library is missing.
    """
    launch, record = _launcher(launcher), out / "sweep.json"
    before = read_json(record) if record.exists() else {}
    outcomes = {
        trial.name: Outcome(**before[trial.name])
        for trial in trials
        if trial.name in before
        and before[trial.name]["status"] == 0
        and before[trial.name]["command"] == list(trial.command)
        and trial.run.is_dir()
    }
    rest = [trial for trial in trials if trial.name not in outcomes]
    print(f"{len(rest)} of {len(trials)} trials to run", file=sys.stderr)
    for outcome in launch(rest, resources) if rest else ():
        outcomes[outcome.name] = outcome
        write_json(
            record, before | {name: dataclasses.asdict(one) for name, one in outcomes.items()}
        )
        print(
            f"trial {outcome.name}: {'done' if not outcome.status else f'FAILED, status {outcome.status}'}",
            file=sys.stderr,
        )
    outcomes = {trial.name: outcomes[trial.name] for trial in trials}
    runs = [trial.run for trial in trials if not outcomes[trial.name].status]
    page = report.write_report(runs, out / "report.html") if runs else None
    return Swept(outcomes, runs, page)


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
