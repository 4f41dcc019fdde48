"""The process of `compile_request`: it compiles a training step for devices that are not there.

It is a separate one because jax fixes its platforms, and libtpu its topology, once per process. XLA
compiles for a description of the devices, which libtpu has for TPUs and `gpu_target` for GPUs.
"""

import dataclasses
import functools
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
from ctxext.losses import step_rotations
from ctxext.model.config import LlamaConfig
from ctxext.parallel.mesh import ROWS
from ctxext.plan.accelerators import topology
from ctxext.plan.gpu_target import CHIPS
from ctxext.rope import RopeScaling, rotation_at
from ctxext.serialization import from_json
from ctxext.training.rotation import training_rotation
from ctxext.training.state import state_shapes
from ctxext.training.step import compiled_step

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def lowered_step(experiment: Experiment, config: LlamaConfig, scaling: RopeScaling) -> Any:
    """The training step of an experiment, lowered for the devices of its mesh.

    Only shapes are passed; nothing is allocated.
    """
    train = experiment.train
    mesh = experiment.mesh.build()
    by_rows = NamedSharding(mesh, PartitionSpec(None, ROWS))
    replicated = NamedSharding(mesh, PartitionSpec())

    def replicated_shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

    params, opt_state, frozen = state_shapes(experiment, config)
    shape = (train.accumulate, train.batch_size, train.seq_len)
    batch = {}
    for name in Batch._fields:
        dtype = np.float32 if name == "weights" else np.int32
        batch[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=by_rows)
    lengths = experiment.lengths(config.max_position_embeddings)
    for name, x in experiment.loss.row_inputs(np.random.default_rng(0), lengths).items():
        row = (*shape[:2], *x.shape)
        batch[name] = jax.ShapeDtypeStruct(row, x.dtype, sharding=by_rows)
    seeds = experiment.trainable.dropout_seeds(experiment.seed, 0, train.accumulate)
    batch |= {name: replicated_shape(x) for name, x in seeds.items()}
    rope_base = config.rope_base()
    rotations = step_rotations(
        experiment.loss,
        np.arange(train.seq_len)[None],
        functools.partial(training_rotation, experiment, scaling, rope_base),
        lengths=lengths,
        base_rotation_at=functools.partial(rotation_at, scaling, rope_base),
    )
    rotations = jax.tree.map(replicated_shape, rotations)
    traced = compiled_step(experiment, config).trace(params, opt_state, batch, rotations, frozen)
    platform = mesh.devices.flat[0].platform
    return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


def topology_devices(name: str) -> Any:
    """Devices of a topology such as "v5p:2x2x4" or "h100:8", to compile for."""
    accelerator, count = topology(name)
    if accelerator.platform == "gpu":
        return topologies.get_topology_desc(
            name,
            "cuda",
            target_config=CHIPS[accelerator.name].target,
            topology=f"1x1x{count}",  # one machine
        ).devices
    is_one_chip = re.search(r":1(x1)+$", name)
    options = {"chips_per_host_bounds": (1, 1, 1)} if is_one_chip else {}
    return topologies.get_topology_desc(name, "tpu", **options).devices


def needs_and_has(error: str) -> tuple[float, float]:
    """The bytes in "... (28.15G) exceeds available ... (15.75G)" or "Used 28.15G of 15.75G ...".

    Raises ValueError for another message.
    """
    number = r"(\d+(?:\.\d+)?[KMGT])"
    for pattern in (rf"\({number}\) exceeds \D*\({number}\)", rf"Used {number} of {number}"):
        match = re.search(pattern, error)
        if match:
            needs, has = (float(text[:-1]) * UNITS[text[-1]] for text in match.groups())
            return needs, has
    raise ValueError(error)


def device_and_host_bytes(analysis: Any) -> tuple[int, int]:
    """Bytes that a compiled program needs on each device, and in the host's memory for it.

    The compiler's peak counts both memories as one. Where something waits on the host, the device
    needs at most what its arguments, results and temporary buffers take.
    """
    host = analysis.host_temp_size_in_bytes
    if not host:
        return analysis.peak_memory_in_bytes, 0
    held = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return held + analysis.output_size_in_bytes - analysis.alias_size_in_bytes, host


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile the requested step: {"needs": bytes per device, "has": bytes, "host": bytes in the
    host's memory per device, "seconds": it took}.

    "has" is None where the step fits.
    """
    experiment = from_json(request["experiment"], trust=True)
    config = from_json(request["config"], trust=True)
    scaling = from_json(request["scaling"], trust=True)
    mesh = experiment.mesh.on(topology_devices(request["topology"]))
    lowered = lowered_step(dataclasses.replace(experiment, mesh=mesh), config, scaling)
    start = time.perf_counter()
    has = None
    host = 0
    try:
        needs, host = device_and_host_bytes(lowered.compile().memory_analysis())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs, has = needs_and_has(str(error))
    return {"needs": needs, "has": has, "host": host, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
