"""Import and export beside copying the files: HF format to HF format, same numbers."""

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
    """Seconds of converting and of copying the same files to disk, in turns; "ratio": speed of ours over copying's."""
    with tempfile.TemporaryDirectory() as directory:
        source = write(SHAPE, Path(directory) / "source")
        size = sum(file.stat().st_size for file in source.iterdir())

        def seconds(call: Callable[[Path], object]) -> float:
            out = Path(directory) / "out"
            started = time.perf_counter()
            call(out)
            took = time.perf_counter() - started
            shutil.rmtree(out)
            return took

        ways = {
            "convert": lambda out: export.convert(source, out),
            "copy": lambda out: _copy(source, out),
        }
        times = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    found = {name: {"seconds": statistics.median(t[name] for t in times)} for name in ways}
    ratios = [t["copy"] / t["convert"] for t in times]
    spread = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return {"bytes": size, "rounds": rounds, **found, "ratio": spread}


def _copy(source: Path, out: Path) -> None:
    """What `cp` does, and to the disk, as an export is."""
    out.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, out / file.name)
        with open(out / file.name, "rb+") as written:
            os.fsync(written.fileno())
