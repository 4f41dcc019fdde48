"""The compiler's own answer, without the device: the training step is compiled in a process of its own.

python -m ctxext.plan.compile_worker < request > answer        what `ask` runs
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.plan import accelerators
from ctxext.rope import RopeScaling
from ctxext.serialization import to_json

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # the device is only compiled for
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",  # no look-ups in a cloud
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
COMPILERS = {
    "tpu": (("libtpu",), "plan"),
    "gpu": (("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"), "plan-gpu"),
}
"""Per platform: where its compiler may be, and the extra that brings it."""
MARGIN = 0.12
"""Quick compiles for TPUs have shown peaks up to 9 % below those of the default effort."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the compiler needs and has, bytes a device, and the seconds it took."""

    needs: float
    has: float
    seconds: float
    precise: bool

    @property
    def fits(self) -> bool:
        """With the margin of a quick compile."""
        return self.needs * (1 if self.precise else 1 + MARGIN) <= self.has


def ask(
    experiment: Experiment,
    config: LlamaConfig,
    scaling: RopeScaling,
    topology: str,
    *,
    precise: bool = False,
) -> Verdict:
    """Compile the experiment's step for a topology. precise: with the effort of a real run; for GPUs it always is.

    Raises ValueError for a CPU, without the compiler of the accelerator, or if that fails.
    """
    device, _ = accelerators.topology(topology)
    if device.platform == "cpu":
        raise ValueError(
            f"--compile asks the compilers of {', '.join(accelerators.ACCELERATORS)}; not of {topology}"
        )
    if not compiler_is_there(device.platform):
        raise ValueError(
            f"--compile needs the compiler of {device.name}, which runs on any machine: "
            f"pip install 'ctxext[{COMPILERS[device.platform][1]}]'"
        )
    precise = precise or device.platform == "gpu"
    request = {
        name: to_json(x)
        for name, x in (("experiment", experiment), ("config", config), ("scaling", scaling))
    }
    answer = _call({**request, "topology": topology.lower()}, precise)
    return Verdict(answer["needs"], answer["has"] or device.memory, answer["seconds"], precise)


def compiler_is_there(platform: str) -> bool:
    """Whether the compiler of "tpu" or "gpu" is installed."""

    def found(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of the package that it is in
            return False

    return any(map(found, COMPILERS[platform][0]))


def _call(request: dict[str, Any], precise: bool) -> dict[str, Any]:
    hidden = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT")
    environment = {
        key: value for key, value in os.environ.items() if key not in hidden
    } | ENVIRONMENT
    if not precise:
        environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"  # read when jax is imported
    done = subprocess.run(
        [sys.executable, "-m", "ctxext.plan.compile_worker"],
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(
            f"the compiler failed: {lines[-1] if lines else f'exit code {done.returncode}'}"
        )
    return json.loads(done.stdout.splitlines()[-1])
