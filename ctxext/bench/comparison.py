"""Run a case in several backends, in turns, each in its own process."""

import contextlib
import json
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext import progress
from ctxext.bench.cases import BenchmarkCase
from ctxext.bench.instructions import environment
from ctxext.bench.limits import mfu, operations, read_bandwidth, roofline
from ctxext.child_python import python_command

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Relative, of losses and of norms of gradients."""
GIB = 2**30
QUIET = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "PYTHONWARNINGS": "ignore",
}


class BackendProcess:
    """The process of one backend, "ctxext" or "transformers", ready to run a case."""

    def __init__(self, name: str, process: subprocess.Popen) -> None:
        self.name = name
        self._process = process
        self.rounds: list[dict[str, Any]] = []
        greeting = self._read()
        self.version = greeting["version"]
        self.device = greeting["device"]

    def round(self) -> dict[str, Any]:
        """Run the case once: its seconds, values and peak memory in bytes."""
        return self._request("go")

    def device_seconds(self) -> float | None:
        """The time that the device itself took to run the case once; None on a CPU."""
        return self._request("trace")["device_seconds"]

    def _request(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(
                f"the backend {self.name!r} of the benchmark ended without a result (exit status "
                f"{self._process.wait()}); what it printed is above"
            )
        return json.loads(line)


@contextlib.contextmanager
def backend_process(
    name: str, case: BenchmarkCase, weights: Path, cpu_isa: str | None = None
) -> Iterator[BackendProcess]:
    """Start a backend's process, which ends with the block."""
    command = python_command("-m", "ctxext.bench.worker", name, case.json(), str(weights))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(cpu_isa), **QUIET},
        process_group=0,  # Ctrl-C is for this process, which ends the other one
    ) as process:
        try:
            yield BackendProcess(name, process)
        finally:
            process.kill()


def compare_backends(
    case: BenchmarkCase,
    weights: Path,
    backends: Sequence[str],
    *,
    rounds: int,
    warmups: int = 2,
    cpu_isa: str | None = None,
    product_rates: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Medians and extremes over `rounds` interleaved rounds; tells `progress` how far they are.

    "ratio" is that of speeds, the first backend's over the second's, in each round. "same": the
    values of both agree, in every round of a training run as well. "device_seconds", on an
    accelerator: its own time for one more round; not for a decode, whose rounds include a prefill.
    `cpu_isa`: a name of `instructions.ENVIRONMENTS`. `product_rates`: the operations per second of
    matrix products in each backend; "product_share" is the share that the case reaches. Raises
    ValueError if a backend fails or runs on another kind of device.
    """
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(backend_process(name, case, weights, cpu_isa)) for name in backends
        ]
        if len({process.device == "cpu" for process in processes}) > 1:
            devices = "; ".join(f"{process.version} on {process.device}" for process in processes)
            raise ValueError(
                f"the backends run on different devices: {devices}; install a torch, or a jax, "
                "that supports the accelerator"
            )
        for number in progress.each(range(warmups + rounds), lambda _: 1):
            in_turn = processes if number % 2 else processes[::-1]
            for process in in_turn:
                process.rounds.append(process.round())
        summaries = {process.name: _summary(case, process, warmups) for process in processes}
    needed = operations(case)
    for name, summary in summaries.items():
        if needed and product_rates:
            rate = needed / summary["seconds"]["median"]
            summary["product_share"] = rate / product_rates[name]
    figures: dict[str, Any] = {
        "case": case.name,
        "tokens": case.tokens,
        "rounds": rounds,
        "cpu_isa": cpu_isa,
        "backends": summaries,
    }
    if case.part == "decode" and processes[0].device == "cpu":
        bandwidth = read_bandwidth()
        figures["read_bandwidth"] = bandwidth
        for summary in summaries.values():
            summary["roofline"] = roofline(case, summary["seconds"]["median"], bandwidth)
    if len(processes) == 2:
        one, other = ([r["seconds"] for r in process.rounds[warmups:]] for process in processes)
        figures["ratio"] = _spread([b / a for a, b in zip(one, other, strict=True)])
        peaks = [summaries[name]["peak_gib"] for name in backends]
        figures["memory_ratio"] = peaks[0] / peaks[1]
        values = [
            np.array([r["value"] for r in process.rounds], np.float64) for process in processes
        ]
        figures["same"] = bool(np.allclose(*values, rtol=TOLERANCE[case.dtype], atol=0))
    return figures


def _summary(case: BenchmarkCase, process: BackendProcess, warmups: int) -> dict[str, Any]:
    seconds = [r["seconds"] for r in process.rounds[warmups:]]
    median = statistics.median(seconds)
    summary = {
        "version": process.version,
        "device": process.device,
        "seconds": _spread(seconds),
        "peak_gib": max(r["peak"] for r in process.rounds) / GIB,
    }
    if case.part == "product":
        summary["operations_per_second"] = operations(case) / min(seconds)
    else:
        summary["tokens_per_second"] = case.tokens / median
    if case.part == "step" and (share := mfu(case, median, process.device)):
        summary["mfu"] = share
    if process.device != "cpu" and case.part != "decode":
        if device_seconds := process.device_seconds():
            summary["device_seconds"] = device_seconds
    return summary


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
