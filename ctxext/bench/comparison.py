"""Two sides doing the same work in turns, each in a process of its own: medians, ratios of neighbours, peak memory."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.bench.cases import Work
from ctxext.bench.limits import mfu, read_bandwidth, roofline

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Relative, of losses and of norms of gradients."""
GIB = 2**30


class Side:
    """The process of one side, by name "ours" or "theirs"."""

    def __init__(self, name: str, process: subprocess.Popen) -> None:
        self.name, self._process, self.rounds = name, process, []
        hello = self._read()
        self.version, self.device = hello["version"], hello["device"]

    def round(self) -> dict[str, Any]:
        """Let it do the work once."""
        return self._ask("go")

    def device_seconds(self) -> float | None:
        """What the device itself took for the work, once; None on a CPU."""
        return self._ask("trace")["device_seconds"]

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(
                f"the side {self.name!r} of the bench ended without an answer (exit status "
                f"{self._process.wait()}); what it said is above"
            )
        return json.loads(line)


@contextlib.contextmanager
def opened(name: str, work: Work, weights: Path) -> Iterator[Side]:
    """A side's process, which ends with the block."""
    quiet = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "ctxext.bench.worker", name, work.json(), str(weights)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **quiet},
    ) as process:
        try:
            yield Side(name, process)
        finally:
            process.kill()


def match(
    work: Work, weights: Path, sides: Sequence[str], *, rounds: int, warmups: int = 2
) -> dict[str, Any]:
    """Medians and extremes over `rounds` rounds in turns; `ratio`: of speeds, ours over theirs, in each round.

    "device_seconds", on an accelerator: its own time for one more round, but for a decode, whose rounds have a prefill.
    "same": the values of both sides agree, in every round of a training run as well. Raises ValueError if a side fails
    or runs on another kind of device.
    """
    with contextlib.ExitStack() as stack:
        teams = [stack.enter_context(opened(name, work, weights)) for name in sides]
        if len({side.device == "cpu" for side in teams}) > 1:
            where = "; ".join(f"{side.version} on {side.device}" for side in teams)
            raise ValueError(
                f"the sides run on different devices: {where}; install a torch, or a jax, that knows the "
                "accelerator"
            )
        for number in range(warmups + rounds):
            for side in teams if number % 2 else teams[::-1]:
                side.rounds.append(side.round())
        found = {side.name: _summary(work, side, warmups) for side in teams}
    figures: dict[str, Any] = {
        "work": work.name,
        "tokens": work.tokens,
        "rounds": rounds,
        "sides": found,
    }
    if work.part == "decode" and teams[0].device == "cpu":
        figures["read_bandwidth"] = bandwidth = read_bandwidth()
        for side in found.values():
            side["roofline"] = roofline(work, side["seconds"]["median"], bandwidth)
    if len(teams) == 2:
        one, other = ([r["seconds"] for r in side.rounds[warmups:]] for side in teams)
        figures["ratio"] = _spread([b / a for a, b in zip(one, other, strict=True)])
        figures["memory_ratio"] = found[sides[0]]["peak_gib"] / found[sides[1]]["peak_gib"]
        values = [np.array([r["value"] for r in side.rounds], np.float64) for side in teams]
        figures["same"] = bool(np.allclose(*values, rtol=TOLERANCE[work.dtype], atol=0))
    return figures


def _summary(work: Work, side: Side, warmups: int) -> dict[str, Any]:
    seconds = [r["seconds"] for r in side.rounds[warmups:]]
    own = side.device_seconds() if side.device != "cpu" and work.part != "decode" else None
    share = mfu(work, statistics.median(seconds), side.device) if work.part == "step" else None
    return {
        "version": side.version,
        "device": side.device,
        "seconds": _spread(seconds),
        "tokens_per_second": work.tokens / statistics.median(seconds),
        "peak_gib": max(r["peak"] for r in side.rounds) / GIB,
        **({"mfu": share} if share else {}),
        **({"device_seconds": own} if own else {}),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
