"""The file that reports and tests read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.evals.record import EvalRecord
from ctxext.files import append_jsonl

Images = dict[str, np.ndarray]
"""Pictures by "task/variant", uint8 [height, width, 3]."""


class JsonlSink:
    """metrics.jsonl; evaluations, pictures and directories of a run have places of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, row: dict[str, Any]) -> None:
        append_jsonl(self.path, row)

    def records(self, records: list[EvalRecord]) -> None:
        pass

    def images(self, draw: Callable[[], Images]) -> None:
        pass

    def artifact(self, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> None:
        pass

    def finish(self, failed: bool = False) -> None:
        pass
