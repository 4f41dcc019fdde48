"""Converting a checkpoint compared with copying its files: HF format to HF format, same numbers."""

import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctxext import export
from ctxext.bench.cases import SMALL
from ctxext.bench.weights import write

SHAPE = dataclasses.replace(
    SMALL,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=16,
)
"""218 M parameters, 0.9 GB in float32."""


def throughput(rounds: int = 5) -> dict[str, Any]:
    """Seconds of converting and of copying the same files to disk, interleaved.

    "ratio" is the speed of converting over that of copying.
    """
    with tempfile.TemporaryDirectory() as directory:
        source = write(SHAPE, Path(directory) / "source")
        size = sum(file.stat().st_size for file in source.iterdir())

        def seconds(write_to: Callable[[Path], object]) -> float:
            out = Path(directory) / "out"
            started = time.perf_counter()
            write_to(out)
            elapsed = time.perf_counter() - started
            shutil.rmtree(out)
            return elapsed

        times = []
        for _ in range(rounds + 1):
            convert = seconds(lambda out: export.convert(source, out))
            copy = seconds(lambda out: _copy(source, out))
            times.append((convert, copy))
    times = times[1:]  # the first round warms up
    ratios = [copy / convert for convert, copy in times]
    return {
        "bytes": size,
        "rounds": rounds,
        "convert": {"seconds": statistics.median(convert for convert, _ in times)},
        "copy": {"seconds": statistics.median(copy for _, copy in times)},
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
    }


def _copy(source: Path, out: Path) -> None:
    """Copy files as `cp` does, and onto the disk, as an export is."""
    out.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, out / file.name)
        with open(out / file.name, "rb+") as copied:
            os.fsync(copied.fileno())
