"""Asks the compiler how much memory a training step needs, without the device.

The step is compiled in another process, `python -m ctxext.plan.compile_worker`, which reads the
request as JSON from stdin and prints its answer as the last line.
"""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
from typing import Any

from ctxext.child_python import python_command
from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.plan import accelerators
from ctxext.rope import RopeScaling
from ctxext.serialization import to_json

ENVIRONMENT = {
    # The device is only compiled for.
    "JAX_PLATFORMS": "cpu",
    # libtpu is not to look for a cloud.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
NOT_INHERITED = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT")
COMPILERS = {
    "tpu": (("libtpu",), "plan"),
    "gpu": (("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"), "plan-gpu"),
}
"""Per platform: the modules, one of which holds its compiler, and the extra that installs it."""
MARGIN = 0.12
"""Memory kept free after a quick compile, whose peaks for TPUs were up to 9 % too low."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The bytes per device that a step needs and has, according to the compiler."""

    needs: float
    has: float
    seconds: float
    """Time that compiling took."""
    precise: bool
    """Compiled with the effort of a real run."""
    host: float = 0
    """Bytes that wait in the host's memory, per device."""

    @property
    def fits(self) -> bool:
        """True if it fits, with MARGIN to spare unless `precise`."""
        return self.needs * (1 if self.precise else 1 + MARGIN) <= self.has


def compile_step(
    experiment: Experiment,
    config: LlamaConfig,
    scaling: RopeScaling,
    topology: str,
    *,
    precise: bool = False,
) -> Verdict:
    """Compile the experiment's step for a topology such as "v5p:2x2x4".

    precise: with the effort of a real run, as it always is for GPUs. Raises ValueError for a CPU,
    if the compiler of the accelerator is not installed, and if compiling fails.
    """
    device, _ = accelerators.topology(topology)
    if device.platform == "cpu":
        raise ValueError(
            f"--compile asks the compilers of {', '.join(accelerators.ACCELERATORS)}; "
            f"not of {topology}"
        )
    if not is_compiler_installed(device.platform):
        raise ValueError(
            f"--compile needs the compiler of {device.name}, which runs on any machine: "
            f"pip install 'ctxext[{COMPILERS[device.platform][1]}]'"
        )
    precise = precise or device.platform == "gpu"
    request = {
        "experiment": to_json(experiment),
        "config": to_json(config),
        "scaling": to_json(scaling),
        "topology": topology.lower(),
    }
    answer = _run_worker(request, precise)
    return Verdict(
        needs=answer["needs"],
        has=answer["has"] or device.memory,
        seconds=answer["seconds"],
        precise=precise,
        host=answer["host"],
    )


def is_compiler_installed(platform: str) -> bool:
    """True if the compiler of "tpu" or "gpu" is installed."""
    modules, _ = COMPILERS[platform]
    return any(map(_is_installed, modules))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _reason(process: subprocess.CompletedProcess[str]) -> str:
    """The line that names the error: XLA writes where in the code it was after it."""
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return (errors or lines or [f"exit code {process.returncode}"])[-1]


def _run_worker(request: dict[str, Any], precise: bool) -> dict[str, Any]:
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    environment = inherited | ENVIRONMENT
    if not precise:
        environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"  # read when jax is imported
    process = subprocess.run(
        python_command("-m", "ctxext.plan.compile_worker"),
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise ValueError(f"the compiler failed: {_reason(process)}")
    return json.loads(process.stdout.splitlines()[-1])
