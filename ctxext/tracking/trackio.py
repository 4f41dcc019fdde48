"""trackio: runs in a database on this machine, viewed with `trackio show`; it needs no account."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ctxext.evals.record import EvalRecord
from ctxext.experiment import Experiment
from ctxext.rundir import RunDir
from ctxext.serialization import to_json
from ctxext.tracking.means import eval_logs, scalars
from ctxext.tracking.sink import Images, Sink


class TrackioSink(Sink):
    """Metrics by step, evaluations with their `eval/seq_len`, and heatmaps.

    Run directories of the same name are one run.
    """

    def __init__(self, experiment: Experiment, run: RunDir, group: str, job: str) -> None:
        import trackio

        self._trackio = trackio
        config = {name: value for name, value in to_json(experiment).items() if name[0] != "_"}
        with _stdout_to_stderr():
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "ctxext"),
                name=run.path.name,
                group=group,
                resume="allow",
                config={**config, "job_type": job},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(scalars(row), step=row["step"])
        if "alarm" in row:
            with _stdout_to_stderr():
                self._run.alert("short-context drift", row["alarm"])

    def records(self, records: list[EvalRecord]) -> None:
        for values in eval_logs(records):
            self._run.log(values)

    def images(self, draw: Callable[[], Images]) -> None:
        images = draw().items()
        self._run.log({f"heatmaps/{name}": self._trackio.Image(pixels) for name, pixels in images})

    def finish(self, failed: bool = False) -> None:
        # Not the run's own `finish`, which is called once more when Python ends, and prints.
        with _stdout_to_stderr():
            self._trackio.finish()


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what trackio prints to stderr, because stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
