"""Run trials as Slurm jobs through submitit; a job out of time is requeued and resumes."""

import secrets
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ctxext.child_python import python_command
from ctxext.files import check_place
from ctxext.sweep.trial import Outcome, Resources, Trial


class _Job:
    """Runs a trial. submitit pickles it, and requeues it shortly before its time is over."""

    def __call__(self, trial: Trial, retries: int) -> Outcome:
        return trial.perform(retries)

    def checkpoint(self, trial: Trial, retries: int) -> Any:
        """The same job again: a trial resumes from its own newest checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, trial, retries)


def array(trials: Sequence[Trial], resources: Resources) -> Iterator[Outcome]:
    """Run one array job of all trials, `resources.jobs` at a time.

    Raises ValueError without submitit or Slurm.
    """
    return _array(trials, resources, "slurm")


def local_array(trials: Sequence[Trial], resources: Resources) -> Iterator[Outcome]:
    """Run the same jobs as processes of this machine."""
    return _array(trials, resources, "local")


def _array(trials: Sequence[Trial], resources: Resources, cluster: str) -> Iterator[Outcome]:
    try:
        import submitit
    except ModuleNotFoundError:
        raise ValueError("this launcher needs submitit: pip install 'ctxext[slurm]'") from None
    python = shlex.join(python_command())
    # A new folder each time: submitit unpickles what it finds in it.
    folder = trials[0].run.parent / "submitit" / secrets.token_hex(8)
    check_place(folder.parent)
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=cluster, slurm_python=python, local_python=python
        )
    except RuntimeError as error:
        raise ValueError(f"Slurm cannot be used here: {error}") from None
    executor.update_parameters(
        timeout_min=resources.minutes,
        cpus_per_task=resources.cpus,
        gpus_per_node=resources.gpus,
        name="ctxext",
    )
    if cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=resources.jobs)
        if resources.partition:
            executor.update_parameters(slurm_partition=resources.partition)
    jobs = executor.map_array(_Job(), list(trials), [resources.retries] * len(trials))
    for trial, job in zip(trials, jobs, strict=True):
        try:
            yield job.result()
        except Exception:
            # The job itself was lost: cancelled, out of memory, out of requeues.
            yield trial.outcome(1)
