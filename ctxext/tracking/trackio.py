"""trackio: runs in a database on this machine, looked at with `trackio show`; no account."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext.evals.record import EvalRecord
from ctxext.experiment import Experiment
from ctxext.rundir import RunDir
from ctxext.serialization import to_json
from ctxext.tracking.jsonl import Images
from ctxext.tracking.means import means, scalars


class TrackioSink:
    """Metrics by step, evaluations with their `eval/seq_len`, heatmaps; a run directory of a name is one run."""

    def __init__(self, experiment: Experiment, run: RunDir, group: str, job: str) -> None:
        import trackio

        self._trackio = trackio
        config = {name: value for name, value in to_json(experiment).items() if name[0] != "_"} | {
            "job_type": job
        }
        with _aside():
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "ctxext"),
                name=run.path.name,
                group=group,
                resume="allow",
                config=config,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(scalars(row), step=row["step"])
        if "alarm" in row:
            with _aside():
                self._run.alert("short-context drift", row["alarm"])

    def records(self, records: list[EvalRecord]) -> None:
        for (seq_len, group), values in means(records).items():
            self._run.log(
                {
                    "eval/seq_len": seq_len,
                    **{f"eval/{group}/{name}": v for name, v in values.items()},
                }
            )

    def images(self, draw: Callable[[], Images]) -> None:
        self._run.log(
            {f"heatmaps/{name}": self._trackio.Image(pixels) for name, pixels in draw().items()}
        )

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        pass  # it would copy them

    def finish(self, failed: bool = False) -> None:
        with _aside():
            self._trackio.finish()  # not the run's own, which is called once more when Python ends, and prints


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """What trackio prints goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
