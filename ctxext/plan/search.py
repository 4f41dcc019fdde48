"""The longest context that fits, over meshes, rematerialisation and what is trained, by arithmetic."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import REMAT
from ctxext.model.trainable import TRAINABLE, Full, LoRA
from ctxext.parallel.mesh import Mesh
from ctxext.plan.accelerators import Accelerator
from ctxext.plan.job import Job
from ctxext.plan.memory import memory

STEP = 1024  # tokens; lengths are multiples of it
MARGIN = 0.1
"""Share of the memory left free: how far the arithmetic may be from the compiler."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run the experiment, with the longest context that fits: 0 if not even one step of tokens does."""

    experiment: Experiment
    seq_len: int
    needs: float
    own: bool
    """Trains what the experiment said; the others are suggestions."""

    @property
    def trains(self) -> str:
        """The name of what is trained."""
        return next(
            name for name, kind in TRAINABLE.items() if type(self.experiment.trainable) is kind
        )

    @property
    def flags(self) -> str:
        """The options of `ctxext train` that make the experiment this one."""
        train = self.experiment.train
        mesh = " ".join(
            f"--mesh.{axis} {size}" for axis, size in self.experiment.mesh.sizes.items()
        )
        method = "" if self.own else f"--method {self.trains} "
        batch = f"--train.batch-size {train.batch_size} --train.seq-len {self.seq_len}"
        return f"{method}{mesh} {batch} --train.remat {train.remat}"


def search(
    experiment: Experiment, config: LlamaConfig, device: Accelerator, devices: int
) -> list[Candidate]:
    """Every candidate, the longest context first, then the fewest computed twice; one row a group of devices."""
    ways = candidates(experiment, config, devices)
    found = [
        longest(x, config, device, devices, own=x.trainable == experiment.trainable) for x in ways
    ]
    return sorted(found, key=lambda c: (-c.seq_len, c.experiment.train.remat != "none", c.needs))


def candidates(experiment: Experiment, config: LlamaConfig, devices: int) -> Iterator[Experiment]:
    """The experiment on every mesh of all devices, with and without remat, training its own subset, all, or LoRA."""
    subsets = dict.fromkeys((experiment.trainable, Full(), LoRA()))
    for mesh, remat, trainable in itertools.product(meshes(config, devices), REMAT, subsets):
        train = dataclasses.replace(experiment.train, batch_size=mesh.fsdp, remat=remat)
        yield dataclasses.replace(experiment, mesh=mesh, train=train, trainable=trainable)


def meshes(config: LlamaConfig, devices: int) -> list[Mesh]:
    """Meshes of all devices without copies: `data` 1, `tensor` a divisor of the key-value heads up to 8."""
    cuts = [axis for axis in Mesh().sizes if axis not in ("data", "fsdp")]
    found = [Mesh(fsdp=devices)]
    for axis in cuts:
        most = math.gcd(8, config.num_key_value_heads) if axis == "tensor" else devices
        found = [
            dataclasses.replace(mesh, fsdp=mesh.fsdp // size, **{axis: size})
            for mesh in found
            for size in range(1, most + 1)
            if mesh.fsdp % size == 0
        ]
    return found


def longest(
    experiment: Experiment,
    config: LlamaConfig,
    device: Accelerator,
    devices: int,
    *,
    own: bool = True,
) -> Candidate:
    """The experiment with the longest context that fits."""
    job, room = Job.of(experiment, config, devices), device.memory * (1 - MARGIN)

    def needs(steps: int) -> float:
        return memory(dataclasses.replace(job, seq_len=steps * STEP), device.platform).peak

    fits, over = 0, 1
    while needs(over) <= room:
        fits, over = over, 2 * over
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if needs(middle) <= room else (fits, middle)
    train = dataclasses.replace(experiment.train, seq_len=max(fits, 1) * STEP)
    return Candidate(
        dataclasses.replace(experiment, train=train), fits * STEP, needs(max(fits, 1)), own
    )
