"""The TPU compiler's own answer, without a TPU: the training step is compiled in a process of its own.

python -m ctxext.plan.tpu < request > answer        what `ask` runs
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from ctxext.config import LlamaConfig
from ctxext.experiment import Experiment, to_json
from ctxext.plan.accelerators import ACCELERATORS
from ctxext.rope import RopeScaling

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # the TPU is only compiled for
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",  # no look-ups in a cloud
    "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_STDERR_LOG_LEVEL": "3", "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip
MARGIN = 0.12
"""Quick compiles have shown peaks up to 9 % below those of the default effort."""


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
    experiment: Experiment, config: LlamaConfig, scaling: RopeScaling, topology: str, *, precise: bool = False
) -> Verdict:
    """Compile the experiment's step for a TPU topology. precise: with the effort of a real run, minutes.

    Raises ValueError for an accelerator that is no TPU, without libtpu, or if the compiler fails otherwise.
    """
    name = topology.partition(":")[0]
    if not (name in ACCELERATORS and ACCELERATORS[name].platform == "tpu"):
        tpus = ", ".join(x.name for x in ACCELERATORS.values() if x.platform == "tpu")
        raise ValueError(f"--compile asks the TPU compiler, which knows {tpus}; not {topology}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("--compile needs the TPU compiler, which runs on any machine: pip install 'ctxext[plan]'")
    request = {name: to_json(x) for name, x in (("experiment", experiment), ("config", config), ("scaling", scaling))}
    answer = _call({**request, "topology": topology}, precise)
    return Verdict(answer["needs"], answer["has"] or ACCELERATORS[name].memory, answer["seconds"], precise)


def _call(request: dict[str, Any], precise: bool) -> dict[str, Any]:
    hidden = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | ENVIRONMENT
    if not precise:
        environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1.0"  # read when jax is imported
    done = subprocess.run([sys.executable, "-m", "ctxext.plan.tpu"], input=json.dumps(request), env=environment,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ValueError(f"the TPU compiler failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])
