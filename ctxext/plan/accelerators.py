"""Devices as data: the memory that a program may use, and the speed on the data sheet."""

import dataclasses
import math
import os
import re

GIB = 2**30
PREALLOCATED = 0.75
"""Share of a GPU's memory that JAX takes at the start (XLA_PYTHON_CLIENT_MEM_FRACTION)."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX sees it."""

    name: str
    memory: float
    """Usable bytes."""
    flops: float | None
    """Peak bfloat16 FLOP/s, None if it is not known."""
    source: str
    """Where `memory` is from."""
    host_link: float | None = None
    """Bytes per second between device and host, one way, None if it is not known."""
    dims: int = 0
    """Numbers in the name of a topology of its chips; 0 if devices are simply counted."""
    per_chip: int = 1
    """Devices per chip."""

    @property
    def platform(self) -> str:
        """One of "tpu", "gpu" and "cpu"."""
        if self.dims:
            return "tpu"
        return "gpu" if self.flops else "cpu"


def _tpu(
    name: str, gib: float, flops: float, host_link: float, dims: int, per_chip: int = 1
) -> Accelerator:
    source = "what the TPU compiler (libtpu 0.0.42) reports as available"
    link = host_link / per_chip
    return Accelerator(name, gib * GIB, flops / per_chip, source, link, dims, per_chip)


def _gpu(name: str, gib: float, flops: float, host_link: float) -> Accelerator:
    source = f"{PREALLOCATED:.0%} of {gib:g} GiB, which JAX preallocates by default"
    return Accelerator(name, gib * PREALLOCATED * GIB, flops, source, host_link)


def machine_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpu() -> Accelerator:
    memory = machine_bytes()
    source = "the memory of this machine, which all its devices share"
    return Accelerator("cpu", memory, None, source)


# Peak FLOP/s: the vendors' data sheets, bfloat16 without sparsity. By default, the compiler for v4
# counts each of the two cores of a chip as a device. Links to the host: PCIe 4.0 and 5.0 with 16
# lanes for GPUs, for TPUs "How to Scale Your Model" (jax-ml.github.io/scaling-book).
_ACCELERATORS = (
    _tpu("v4", 15.25, 275e12, 16e9, 3, per_chip=2),
    _tpu("v5e", 15.75, 197e12, 16e9, 2),
    _tpu("v5p", 95.74, 459e12, 16e9, 3),
    _tpu("v6e", 31.25, 918e12, 32e9, 2),
    _gpu("rtx4090", 24, 165e12, 32e9),
    _gpu("a6000", 48, 155e12, 32e9),
    _gpu("a100-40", 40, 312e12, 32e9),
    _gpu("a100-80", 80, 312e12, 32e9),
    _gpu("h100-80", 80, 989e12, 64e9),
    _gpu("h200-141", 140, 989e12, 64e9),
    _gpu("b200", 179, 2250e12, 64e9),
)
ACCELERATORS: dict[str, Accelerator] = {x.name: x for x in _ACCELERATORS}

KINDS = {
    r"TPU v4": "v4",
    r"TPU v5 lite|TPU v5e": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6 lite|TPU v6e": "v6e",
    r"NVIDIA GeForce RTX 4090": "rtx4090",
    r"NVIDIA RTX A6000": "a6000",
    r"NVIDIA A100-.*-40GB": "a100-40",
    r"NVIDIA A100-.*-80GB": "a100-80",
    r"NVIDIA H100 80GB HBM3": "h100-80",
    r"NVIDIA H200": "h200-141",
    r"NVIDIA B200": "b200",
}
"""Accelerators by jax's `device_kind`; others, such as the H100 for PCIe, have another peak."""


def of_kind(kind: str) -> Accelerator | None:
    """The accelerator of a jax `device_kind`; None if it is not known."""
    for pattern, name in KINDS.items():
        if re.fullmatch(pattern, kind):
            return ACCELERATORS[name]
    return None


def topology(text: str) -> tuple[Accelerator, int]:
    """(accelerator, devices): "v5p:2x2x4" is (v5p, 16), "h100:8" is (h100-80, 8).

    Raises ValueError for anything else.
    """
    name, _, size = text.lower().partition(":")
    device = _cpu() if name == "cpu" else _named(name, text)
    if not re.fullmatch(r"\d+(x\d+)*", size) or size.count("x") + 1 != max(device.dims, 1):
        numbers = f"{device.dims} numbers" if device.dims else "one number"
        example = f"{device.name}:{'x'.join(['2'] * device.dims) or '8'}"
        raise ValueError(
            f"--topology {text}: write {device.name} with {numbers}, such as {example}"
        )
    count = math.prod(map(int, size.split("x"))) * device.per_chip
    if count < 1:
        raise ValueError(f"--topology {text} has no device")
    if name == "cpu":
        device = dataclasses.replace(device, memory=device.memory / count)
    return device, count


def _named(name: str, text: str) -> Accelerator:
    """The accelerator of this name, or the only one that starts with it: "h100" is h100-80."""
    if name in ACCELERATORS:
        return ACCELERATORS[name]
    matches = [x for x in ACCELERATORS.values() if x.name.split("-")[0] == name]
    if len(matches) != 1:
        known = ", ".join([*ACCELERATORS, "cpu"])
        raise ValueError(
            f"--topology {text}: accelerator {name!r} is not one of {known}; "
            "write it as v5p:2x2x4 or h100:8"
        )
    return matches[0]
