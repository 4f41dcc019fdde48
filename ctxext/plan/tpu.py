"""The other process of `compiled.ask`: jax settles its platforms, and libtpu its topology, once and for all."""

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

from ctxext.config import LlamaConfig
from ctxext.data import Batch
from ctxext.experiment import Experiment, from_json
from ctxext.rope import RopeScaling
from ctxext.sharding import ROWS
from ctxext.state import state_shapes
from ctxext.train import compiled_step

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def lowered_step(experiment: Experiment, config: LlamaConfig, scaling: RopeScaling) -> Any:
    """The training step of an experiment, lowered on shapes for the devices of its mesh; nothing is allocated."""
    mesh, train = experiment.mesh, experiment.train
    built = mesh.build()
    params, state, frozen = state_shapes(experiment, config)
    rows, whole = NamedSharding(built, PartitionSpec(None, ROWS)), NamedSharding(built, PartitionSpec())
    shape = (train.accumulate, train.batch_size, train.seq_len)
    batch = {name: jax.ShapeDtypeStruct(shape, np.float32 if name == "weights" else np.int32, sharding=rows)
             for name in Batch._fields}  # fmt: skip
    rotation = (experiment.rope or scaling).rope(config.rope_base(), train.seq_len).rotation()
    rotation = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), rotation)
    noise = experiment.trainable.noise(experiment.seed, 0, train.accumulate)
    batch |= {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for name, x in noise.items()}
    traced = compiled_step(experiment, config).trace(params, state, batch, rotation, frozen)
    return traced.lower(lowering_platforms=(built.devices.flat[0].platform,))


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
    experiment, config, scaling = (from_json(request[x], trust=True) for x in ("experiment", "config", "scaling"))
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if re.search(r":1(x1)+$", request["topology"]) else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=request["topology"], **one_chip)
    lowered = lowered_step(dataclasses.replace(experiment, mesh=experiment.mesh.on(found.devices)), config, scaling)
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
