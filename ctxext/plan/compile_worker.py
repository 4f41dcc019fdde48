"""The other process of `compiled.ask`: jax settles its platforms, and libtpu its topology, once and for all.

No device is there: XLA compiles for a description of it. Of a TPU, libtpu has that; of a GPU, `gpu`.
"""

import dataclasses
import json
import re
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from ctxext.data import Batch
from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.parallel.mesh import ROWS
from ctxext.plan.accelerators import topology
from ctxext.plan.gpu_target import CHIPS
from ctxext.rope import RopeScaling, rotation_at
from ctxext.serialization import from_json
from ctxext.training.state import state_shapes
from ctxext.training.step import compiled_step

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def lowered_step(experiment: Experiment, config: LlamaConfig, scaling: RopeScaling) -> Any:
    """The training step of an experiment, lowered on shapes for the devices of its mesh; nothing is allocated."""
    mesh, train = experiment.mesh, experiment.train
    built = mesh.build()
    params, state, frozen = state_shapes(experiment, config)
    rows, whole = (
        NamedSharding(built, PartitionSpec(None, ROWS)),
        NamedSharding(built, PartitionSpec()),
    )
    shape = (train.accumulate, train.batch_size, train.seq_len)
    batch = {
        name: jax.ShapeDtypeStruct(
            shape, np.float32 if name == "weights" else np.int32, sharding=rows
        )
        for name in Batch._fields
    }
    scaling = experiment.effective_scaling(scaling)
    rotation = rotation_at(scaling, config.rope_base(), train.seq_len)
    rotation = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), rotation
    )
    noise = experiment.trainable.dropout_seeds(experiment.seed, 0, train.accumulate)
    batch |= {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for name, x in noise.items()
    }
    traced = compiled_step(experiment, config).trace(params, state, batch, rotation, frozen)
    platform = built.devices.flat[0].platform
    return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


def devices(name: str) -> Any:
    """Devices of a topology such as "v5p:2x2x4" or "h100:8", to compile for."""
    accelerator, count = topology(name)
    if accelerator.platform == "gpu":
        chip, one_machine = CHIPS[accelerator.name], f"1x1x{count}"
        return topologies.get_topology_desc(
            name, "cuda", target_config=chip.target, topology=one_machine
        ).devices
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if re.search(r":1(x1)+$", name) else {}
    return topologies.get_topology_desc(name, "tpu", **one_chip).devices


def needs_and_has(error: str) -> tuple[float, float]:
    """Bytes of "... (28.15G) exceeds available ... (15.75G)" and of "Used 28.15G of 15.75G ...".

    Raises ValueError for a message of another kind.
    """
    number = r"(\d+(?:\.\d+)?[KMGT])"
    for pattern in (rf"\({number}\) exceeds \D*\({number}\)", rf"Used {number} of {number}"):
        if found := re.search(pattern, error):
            needs, has = (float(text[:-1]) * UNITS[text[-1]] for text in found.groups())
            return needs, has
    raise ValueError(error)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """{"needs": bytes a device, "has": bytes, or None where it fits, "seconds": of compiling}."""
    experiment, config, scaling = (
        from_json(request[x], trust=True) for x in ("experiment", "config", "scaling")
    )
    mesh = experiment.mesh.on(devices(request["topology"]))
    lowered = lowered_step(dataclasses.replace(experiment, mesh=mesh), config, scaling)
    start, has = time.perf_counter(), None
    try:
        needs = lowered.compile().memory_analysis().peak_memory_in_bytes
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs, has = needs_and_has(str(error))
    return {"needs": needs, "has": has, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
