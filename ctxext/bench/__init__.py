"""Benchmarks: what things cost here, warm, as data; on request next to transformers on torch."""

import importlib.util
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctxext.bench.cases import BenchmarkCase, standard_cases
from ctxext.child_python import python_command

AGAINST = {"hf": "transformers"}
"""The libraries to compare with, and the backend for each."""
COMPARED = ("step", "prefill", "decode", "attention", "loss", "memory")
PARTS = ("eval", "io", *COMPARED)


def measure(
    source: str,
    parts: Sequence[str],
    *,
    against: str | None = None,
    rounds: int = 5,
    platform: str | None = None,
) -> dict[str, Any]:
    """The figures of the named parts, of `PARTS`.

    `source`: the model of "eval"; the other parts have random weights. `against`: "hf" does the
    same with transformers, interleaved. `platform`: whose sizes, by default those of this machine.
    Raises ValueError for an unknown name, and if transformers is not installed.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"there is no benchmark {part!r}; known: {', '.join(PARTS)}")
    backends = ["ctxext"]
    alone = [part for part in parts if part not in COMPARED]
    if against is not None:
        if alone:
            raise ValueError(
                f"{', '.join(alone)} is measured for ctxext alone; with --against give --parts of "
                f"{', '.join(COMPARED)}"
            )
        if against not in AGAINST:
            raise ValueError(
                f"there is no benchmark against {against!r}; known: {', '.join(AGAINST)}"
            )
        if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
            raise ValueError(
                "--against hf runs transformers on torch; install both: pip install transformers "
                "torch"
            )
        backends.append(AGAINST[against])
    cases = {}
    if set(parts) & set(COMPARED):
        cases = standard_cases(platform or _platform())
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        for part in parts:
            if part == "eval":
                figures[part] = _evaluation(source)
            elif part == "io":
                figures[part] = _files()
            else:
                figures[part] = _comparisons(cases[part], Path(directory), backends, rounds)
    return figures


def _platform() -> str:
    """ "cpu", "gpu" or "tpu", from a process that ends and so gives the device back."""
    code = "import jax; print(jax.default_backend())"
    command = python_command("-c", code)
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return process.stdout.split()[-1]


def _comparisons(
    cases: Sequence[BenchmarkCase], directory: Path, backends: Sequence[str], rounds: int
) -> dict[str, Any]:
    from ctxext.bench.comparison import compare_backends
    from ctxext.bench.weights import random_weights

    return {
        "comparisons": [
            compare_backends(case, random_weights(case, directory), backends, rounds=rounds)
            for case in cases
        ]
    }


def _evaluation(source: str) -> dict[str, Any]:
    from ctxext import loading
    from ctxext.bench.evaluation import overhead

    return overhead(loading.load(source))


def _files() -> dict[str, Any]:
    from ctxext.bench.files import throughput

    return throughput()
