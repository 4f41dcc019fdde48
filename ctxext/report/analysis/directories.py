"""Run directories on their own, or all of those in the directory of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from ctxext.report.analysis.run_files import STAGES, read_object
from ctxext.rundir import RunDir


def run_directories(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The run directories, and the names of those in a sweep that have not finished.

    A directory without records stands for the finished runs in it, by name: those whose
    evaluations are all done, which budget.json says. Raises ValueError if it holds runs, but none
    is finished.
    """
    found: list[Path] = []
    unfinished: list[str] = []
    for path in map(Path, paths):
        if RunDir(path).records_file.is_file() or not path.is_dir():
            found.append(path)
            continue
        runs = sorted(p for p in path.iterdir() if RunDir(p).records_file.is_file())
        finished = [run for run in runs if RunDir(run).budget_file.is_file()]
        if runs and not finished:
            raise ValueError(
                f"{path} holds {len(runs)} runs, and none has finished its evaluations; let one "
                "finish, or name the directory of a run"
            )
        found += finished or [path]
        unfinished += [run.name for run in runs if run not in finished]
    return found, unfinished


def is_unfinished(path: Path) -> bool:
    """Whether a run has not ended its evaluations: it has planned some, which budget.json follows.

    What `ctxext train` leaves, and the --out of `ctxext eval`, plan none. Raises ValueError for
    damaged files.
    """
    run = RunDir(path)
    if run.budget_file.is_file():
        return False
    stages = read_object(run.stages_file, STAGES).get("stages", [])
    return any(stage.get("kind") == "evaluate" for stage in stages)
