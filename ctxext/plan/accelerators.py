"""Devices as data: the memory that a program may use, and the speed on the data sheet."""

import dataclasses
import math
import os
import re

GIB = 2**30
PREALLOCATED = 0.75
"""Share of a GPU's memory that JAX takes when it starts (XLA_PYTHON_CLIENT_MEM_FRACTION raises it)."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX sees it: usable bytes, peak bfloat16 FLOP/s (None: not stated), and where the bytes are from.

    dims: numbers in the name of a topology of its chips (0: devices are simply counted); per_chip: devices of a chip.
    """

    name: str
    memory: float
    flops: float | None
    source: str
    dims: int = 0
    per_chip: int = 1

    @property
    def platform(self) -> str:
        """ "tpu", "gpu" or "cpu"."""
        return "tpu" if self.dims else "gpu" if self.flops else "cpu"


def _tpu(name: str, gib: float, flops: float, dims: int, per_chip: int = 1) -> Accelerator:
    source = "what the TPU compiler (libtpu 0.0.42) says is available"
    return Accelerator(name, gib * GIB, flops / per_chip, source, dims, per_chip)


def _gpu(name: str, gib: float, flops: float) -> Accelerator:
    source = f"{PREALLOCATED:.0%} of {gib:g} GiB, which JAX preallocates by default"
    return Accelerator(name, gib * PREALLOCATED * GIB, flops, source)


# Peak FLOP/s: the vendors' data sheets, bfloat16 without sparsity.
ACCELERATORS: dict[str, Accelerator] = {
    x.name: x
    for x in (
        _tpu(
            "v4", 15.25, 275e12, 3, per_chip=2
        ),  # the compiler's default: both cores of a chip are devices
        _tpu("v5e", 15.75, 197e12, 2),
        _tpu("v5p", 95.74, 459e12, 3),
        _tpu("v6e", 31.25, 918e12, 2),
        _gpu("a100-40", 40, 312e12),
        _gpu("a100-80", 80, 312e12),
        _gpu("h100-80", 80, 989e12),
        _gpu("h200-141", 140, 989e12),
        _gpu("b200", 179, 2250e12),
    )
}


def _cpu() -> Accelerator:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Accelerator(
        "cpu", memory, None, "the memory of this machine, which all its devices share"
    )


# What jax calls the devices; a card of another form, such as the H100 for PCIe, has another peak.
KINDS = {
    r"TPU v4": "v4",
    r"TPU v5 lite|TPU v5e": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6 lite|TPU v6e": "v6e",
    r"NVIDIA A100-.*-40GB": "a100-40",
    r"NVIDIA A100-.*-80GB": "a100-80",
    r"NVIDIA H100 80GB HBM3": "h100-80",
    r"NVIDIA H200": "h200-141",
    r"NVIDIA B200": "b200",
}


def of_kind(kind: str) -> Accelerator | None:
    """The accelerator of a jax `device_kind`; None if it is none of these."""
    return next(
        (ACCELERATORS[name] for pattern, name in KINDS.items() if re.fullmatch(pattern, kind)), None
    )


def topology(text: str) -> tuple[Accelerator, int]:
    """ "v5p:2x2x4" -> (v5p, 16 devices), "h100:8" -> (h100-80, 8). Raises ValueError for anything else."""
    name, _, size = text.lower().partition(":")
    close = [x for x in ACCELERATORS if x == name] or [
        x for x in ACCELERATORS if x.split("-")[0] == name
    ]
    if name != "cpu" and len(close) != 1:
        known = ", ".join([*ACCELERATORS, "cpu"])
        raise ValueError(
            f"--topology {text}: accelerator {name!r} is not one of {known}; as v5p:2x2x4 or h100:8"
        )
    device = _cpu() if name == "cpu" else ACCELERATORS[close[0]]
    example = f"{device.name}:{'x'.join(['2'] * device.dims) or '8'}"
    if not re.fullmatch(r"\d+(x\d+)*", size) or size.count("x") + 1 != max(device.dims, 1):
        raise ValueError(
            f"--topology {text}: write {device.name} with {device.dims or 'one'} "
            f"number{'s' if device.dims else ''}, such as {example}"
        )
    count = math.prod(map(int, size.split("x"))) * device.per_chip
    if count < 1:
        raise ValueError(f"--topology {text} has no device")
    return (
        dataclasses.replace(device, memory=device.memory / count) if name == "cpu" else device
    ), count
