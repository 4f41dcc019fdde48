"""The interface of what takes a run's measurements, and the file that always does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.evals.record import EvalRecord
from ctxext.evals.wrong_answers import WrongAnswer
from ctxext.files import append_jsonl

Images = dict[str, np.ndarray]
"""Pictures by "task/variant", uint8 [height, width, 3]."""


class Sink:
    """Takes measurements. A method does nothing unless a subclass has a use for it."""

    def log(self, row: dict[str, Any]) -> None:
        """Take one row of training metrics after `step` finished steps; an `alarm` is a message."""

    def records(self, records: list[EvalRecord]) -> None:
        """Records of evaluations. The run itself keeps them in records.jsonl."""

    def wrong_answers(self, step: int, answers: Sequence[WrongAnswer]) -> None:
        """Wrong answers after `step` training steps, for people to look at."""

    def images(self, draw: Callable[[], Images]) -> None:
        """Pictures by name; `draw` is called only by a sink that shows them."""

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        """Directories of a run that are worth keeping: to be referred to, never to be copied."""

    def finish(self, failed: bool = False) -> None:
        """The end, which is called once, also when a run fails."""

    @classmethod
    def is_enabled(cls, job: str) -> bool:
        """Whether this tracker wants the runs of a job: "train", "run" or "baseline"."""
        return True

    @classmethod
    def upload_command(cls, run: Path) -> str:
        """The command that uploads what is kept in a run directory; "" if nothing is left."""
        return ""


class JsonlSink(Sink):
    """metrics.jsonl, which reports and tests read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, row: dict[str, Any]) -> None:
        append_jsonl(self.path, row)
