"""The longest context that fits, by arithmetic, over meshes, remat and trained parameters.

Quantized bases are tried where no float one reaches the length of the experiment by itself.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.model.quantized import QUANTIZED, Quantize
from ctxext.model.remat import REMAT
from ctxext.model.trainable import TRAINABLE, Full, LoRA, Trainable
from ctxext.parallel.mesh import Mesh
from ctxext.plan.accelerators import Accelerator
from ctxext.plan.job import Job
from ctxext.plan.memory import memory

STEP = 1024
"""Lengths that are tried are multiples of so many tokens."""
MARGIN = 0.1
"""Share of the memory left free: how far the arithmetic may be from the compiler."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run the experiment, with the longest context that fits; 0 if not even STEP does."""

    experiment: Experiment
    seq_len: int
    needs: float
    """Bytes per device."""
    own: bool
    """It trains the parameters that the experiment names; the others are suggestions."""
    quantizes: bool = False
    """Its base is quantized, and that of the experiment is not."""

    @property
    def offloads(self) -> bool:
        """The inputs of the layers wait in the memory of the host."""
        return self.experiment.train.remat == "offload"

    @property
    def quantize(self) -> Quantize:
        """How the base is held."""
        trainable = self.experiment.trainable
        return trainable.quantize if isinstance(trainable, LoRA) else "none"

    @property
    def trains(self) -> str:
        """The name of the trained subset."""
        kind = type(self.experiment.trainable)
        return next(name for name, known in TRAINABLE.items() if known is kind)

    @property
    def text(self) -> str:
        """What is trained, and on which base if that is quantized."""
        return self.trains if self.quantize == "none" else f"{self.trains}, {self.quantize}"

    @property
    def flags(self) -> str:
        """The options of `ctxext train` that turn the experiment into this one."""
        train = self.experiment.train
        mesh = " ".join(
            f"--mesh.{axis} {size}" for axis, size in self.experiment.mesh.sizes.items()
        )
        method = "" if self.own else f"--method {self.trains} "
        if self.quantizes:
            prefix = "--trainable.quantize" if self.own else "--quantize"
            method += f"{prefix} {self.quantize} "
        batch = f"--train.batch-size {train.batch_size} --train.seq-len {self.seq_len}"
        return f"{method}{mesh} {batch} --train.remat {train.remat}"


def search(
    experiment: Experiment, config: LlamaConfig, device: Accelerator, devices: int
) -> list[Candidate]:
    """Every candidate, one row per group of devices: the longest context first.

    Of equal ones, those without rematerialisation come first, then those that need least. Quantized
    bases are among them if no float base reaches the length of the experiment without the memory of
    the host.
    """
    own = experiment.trainable
    found = [
        longest(x, config, device, devices, own=x.trainable == own)
        for x in candidates(experiment, config, devices, _subsets(own))
    ]
    if longest_float(found) < experiment.train.seq_len:
        found += [
            longest(x, config, device, devices, own=isinstance(own, LoRA), quantizes=True)
            for x in candidates(experiment, config, devices, _on_quantized_bases(own, config))
        ]
    return sorted(found, key=lambda c: (-c.seq_len, c.experiment.train.remat != "none", c.needs))


def longest_float(found: Iterable[Candidate]) -> int:
    """The longest context on a base that is not quantized, without the memory of the host."""
    lengths = [c.seq_len for c in found if c.quantize == "none" and not c.offloads]
    return max(lengths, default=0)


def _subsets(own: Trainable) -> list[Trainable]:
    """The experiment's own parameters, all of them, and adapters, if its own are no adapters.

    Adapters on a quantized base have those on a float one next to them.
    """
    if isinstance(own, LoRA):
        return [own, Full()] if own.quantize == "none" else [own, Full(), LoRA()]
    return list(dict.fromkeys((own, Full(), LoRA())))


def _on_quantized_bases(own: Trainable, config: LlamaConfig) -> list[Trainable]:
    """Adapters on a base in every quantized form; none if they are on one already.

    Forms that the sizes of the model do not allow are left out.
    """
    adapters = own if isinstance(own, LoRA) else LoRA()
    if adapters.quantize != "none":
        return []
    found: list[Trainable] = []
    for form in QUANTIZED:
        trainable = dataclasses.replace(adapters, quantize=form)
        try:
            trainable.shapes(config)
        except ValueError:
            continue
        found.append(trainable)
    return found


def candidates(
    experiment: Experiment, config: LlamaConfig, devices: int, subsets: Iterable[Trainable]
) -> Iterator[Experiment]:
    """Yield the experiment on every mesh of all devices and with every kind of rematerialisation.

    It trains each of the `subsets` of the parameters.
    """
    for mesh, remat, trainable in itertools.product(meshes(config, devices), REMAT, subsets):
        train = dataclasses.replace(experiment.train, batch_size=mesh.fsdp, remat=remat)
        yield dataclasses.replace(experiment, mesh=mesh, train=train, trainable=trainable)


def meshes(config: LlamaConfig, devices: int) -> list[Mesh]:
    """Meshes of all devices: `data` is 1, `tensor` a divisor of the key-value heads up to 8."""
    axes = [axis for axis in Mesh().sizes if axis not in ("data", "fsdp")]
    result = [Mesh(fsdp=devices)]
    for axis in axes:
        largest = math.gcd(8, config.num_key_value_heads) if axis == "tensor" else devices
        result = [
            dataclasses.replace(mesh, fsdp=mesh.fsdp // size, **{axis: size})
            for mesh in result
            for size in range(1, largest + 1)
            if mesh.fsdp % size == 0
        ]
    return result


def longest(
    experiment: Experiment,
    config: LlamaConfig,
    device: Accelerator,
    devices: int,
    *,
    own: bool = True,
    quantizes: bool = False,
) -> Candidate:
    """The experiment with the longest context that fits on the devices."""
    job = Job.of(experiment, config, devices)
    limit = device.memory * (1 - MARGIN)

    def needs(steps: int) -> float:
        return memory(dataclasses.replace(job, seq_len=steps * STEP), device.platform).peak

    fits, too_long = 0, 1
    while needs(too_long) <= limit:
        fits, too_long = too_long, 2 * too_long
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if needs(middle) <= limit:
            fits = middle
        else:
            too_long = middle
    shortest = max(fits, 1)
    train = dataclasses.replace(experiment.train, seq_len=shortest * STEP)
    experiment = dataclasses.replace(experiment, train=train)
    return Candidate(experiment, fits * STEP, needs(shortest), own, quantizes)
