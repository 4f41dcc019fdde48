"""TensorBoard event files in the run directory: tensorboard --logdir runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctxext.evals.record import EvalRecord
from ctxext.experiment import Experiment
from ctxext.rundir import RunDir
from ctxext.tracking.jsonl import Images
from ctxext.tracking.means import means, scalars


class TensorBoardSink:
    """Metrics by step in train/, evaluations by length in tokens and heatmaps in eval/.

    A resumed run hides what it measures again: the later steps, and all evaluations, which it sends once more.
    """

    def __init__(self, experiment: Experiment, run: RunDir, group: str, job: str) -> None:
        from tensorboardX import SummaryWriter

        self._make, self._directory = SummaryWriter, run.path / "tensorboard"
        self._writers: dict[str, Any] = {}

    def _open(self, kind: str, step: int = 0) -> Any:
        if kind not in self._writers:
            self._writers[kind] = self._make(str(self._directory / kind), purge_step=step)
        return self._writers[kind]

    def log(self, row: dict[str, Any]) -> None:
        writer, step = self._open("train", row["step"]), row["step"]
        for name, value in scalars(row).items():
            writer.add_scalar(name, value, step)
        if "alarm" in row:
            writer.add_text("alarm", row["alarm"], step)

    def records(self, records: list[EvalRecord]) -> None:
        for (seq_len, group), values in means(records).items():
            for name, value in values.items():
                self._open("eval").add_scalar(f"eval/{group}/{name}", value, seq_len)

    def images(self, draw: Callable[[], Images]) -> None:
        for name, pixels in draw().items():
            self._open("eval").add_image(f"heatmaps/{name}", pixels, dataformats="HWC")

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        pass  # TensorBoard knows no such thing

    def finish(self, failed: bool = False) -> None:
        for writer in self._writers.values():
            writer.close()
