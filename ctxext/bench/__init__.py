"""Benchmarks: what things cost here, warm, as data; on request next to transformers on torch."""

import contextlib
import dataclasses
import functools
import importlib.util
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ctxext.bench.cases import BenchmarkCase, standard_cases
from ctxext.bench.instructions import ENVIRONMENTS
from ctxext.child_python import python_command
from ctxext.nearest import hint

AGAINST = {"hf": "transformers"}
"""The libraries to compare with, and the backend for each."""
COMPARED = ("product", "step", "prefill", "decode", "attention", "loss", "memory")
PARTS = ("eval", "io", *COMPARED)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One thing to measure; `figures` measures it."""

    part: str
    name: str
    figures: Callable[[], dict[str, Any]]

    def run(self) -> dict[str, Any]:
        """Its figures with the part that they belong to."""
        return {"part": self.part, **self.figures()}


@contextlib.contextmanager
def measurements(
    source: str,
    parts: Sequence[str],
    *,
    against: str | None = None,
    rounds: int = 5,
    platform: str | None = None,
    cpu_isa: str | None = None,
) -> Iterator[list[Measurement]]:
    """The measurements of the named `PARTS`, to be run in this order within the block.

    `source`: the model of "eval"; the other parts have random weights. `against`: "hf" does the
    same with transformers, interleaved. `platform`: whose sizes, by default those of this machine.
    `cpu_isa`: the widest vector instructions to use, of `instructions.ENVIRONMENTS`. The rate of
    matrix products comes before the parts that are compared with it. Raises ValueError for an
    unknown name, and if transformers is not installed.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"there is no benchmark {part!r}; {hint(part, PARTS)}")
    alone = [part for part in parts if part not in COMPARED]
    compared = [part for part in parts if part in COMPARED and part != "product"]
    backends = ["ctxext"]
    if against is not None:
        _check_alone("--against", alone)
        backends.append(_backend(against))
    if cpu_isa is not None:
        _check_alone("--cpu-isa", alone)
        if cpu_isa not in ENVIRONMENTS:
            raise ValueError(
                f"the instructions {cpu_isa!r} are not known; known: {', '.join(ENVIRONMENTS)}"
            )
    cases = {}
    if compared or "product" in parts:
        platform = platform or _platform()
        if cpu_isa is not None and platform != "cpu":
            raise ValueError(f"--cpu-isa is for CPUs; this is a {platform}")
        cases = standard_cases(platform)
        compared.insert(0, "product")
    with tempfile.TemporaryDirectory() as directory:
        run = functools.partial(
            _comparison,
            Path(directory),
            backends,
            rounds=rounds,
            cpu_isa=cpu_isa,
            product_rates={},
        )
        yield [
            *_measured_alone(source, alone),
            *(
                Measurement(part, case.name, functools.partial(run, case))
                for part in compared
                for case in cases[part]
            ),
        ]


def measure(source: str, parts: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """The results of `measurements`, in order; the options are those."""
    with measurements(source, parts, **options) as listed:
        return [measurement.run() for measurement in listed]


def _check_alone(option: str, alone: Sequence[str]) -> None:
    if alone:
        raise ValueError(
            f"{', '.join(alone)} is measured for ctxext alone; with {option} give --parts of "
            f"{', '.join(COMPARED)}"
        )


def _backend(against: str) -> str:
    if against not in AGAINST:
        raise ValueError(f"there is no benchmark against {against!r}; known: {', '.join(AGAINST)}")
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        raise ValueError(
            "--against hf runs transformers on torch; install both: pip install transformers torch"
        )
    return AGAINST[against]


def _platform() -> str:
    """ "cpu", "gpu" or "tpu", from a process that ends and so gives the device back."""
    code = "import jax; print(jax.default_backend())"
    command = python_command("-c", code)
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return process.stdout.split()[-1]


def _comparison(
    directory: Path,
    backends: Sequence[str],
    case: BenchmarkCase,
    *,
    rounds: int,
    cpu_isa: str | None,
    product_rates: dict[str, float],
) -> dict[str, Any]:
    """Compare the backends; the rates of a case of products are kept for the cases after it."""
    from ctxext.bench.comparison import compare_backends
    from ctxext.bench.weights import random_weights

    result = compare_backends(
        case,
        random_weights(case, directory),
        backends,
        rounds=rounds,
        cpu_isa=cpu_isa,
        product_rates=product_rates,
    )
    if case.part == "product":
        for name, summary in result["backends"].items():
            product_rates[name] = summary["operations_per_second"]
    return result


def _measured_alone(source: str, parts: Sequence[str]) -> Iterator[Measurement]:
    if "eval" in parts:
        from ctxext import loading
        from ctxext.bench.evaluation import evaluations, overhead

        lm = loading.load(source)
        for name, evaluation in evaluations(lm).items():
            figures = functools.partial(overhead, name, evaluation, lm)
            yield Measurement("eval", f"eval, {name}", figures)
    if "io" in parts:
        from ctxext.bench.files import throughput

        yield Measurement("io", "io, a checkpoint converted and copied", throughput)
