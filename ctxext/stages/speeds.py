"""The speed of this device with a model: measured now, or at an earlier start of the same run."""

import dataclasses
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from ctxext.files import read_json, read_jsonl
from ctxext.model.lm import LM
from ctxext.parallel import distributed
from ctxext.parallel.mesh import Mesh
from ctxext.plan.longest_text import usable_bytes
from ctxext.price import Speed, measure_now, weight_bytes
from ctxext.rundir import RunDir

SHARE_OF_MEMORY = 0.25
"""Share of the memory that weights may take for a dry run to time readings with them."""
LARGEST_ON_CPU = 2e9
"""Bytes of weights beyond which a dry run on CPUs times nothing, as it would take minutes."""
LAST_STEPS = 20
"""Logged steps of an earlier start whose speed is taken."""


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What this device makes of a run."""

    reading: Speed
    training: Speed
    """In the compute dtype of training."""
    basis: str
    """When and how they were measured, in words."""
    tokens_per_second: float | None = None
    """Of training, if the run has trained on this device before."""

    def data(self) -> dict[str, Any]:
        """As JSON, for `read_speeds`."""
        return {
            "device": jax.devices()[0].device_kind,
            "reading": dataclasses.asdict(self.reading),
            "training": dataclasses.asdict(self.training),
        }


def measure_speeds(lm: LM, longest: int, dtype: str) -> Speeds:
    """Time short readings of a model, and again in the compute dtype of training if it differs."""
    reading, basis = measure_now(lm, longest)
    training = reading
    if dtype != lm.dtype:
        training, _ = measure_now(dataclasses.replace(lm, dtype=dtype), longest)
    return Speeds(reading, training, basis)


def read_speeds(run: RunDir) -> Speeds | None:
    """The speeds that an earlier start of a run measured on the same kind of device, if any."""
    return _speeds(distributed.broadcast_from_primary(lambda: _read(run)))


def _read(run: RunDir) -> dict[str, Any] | None:
    """What is known of the speed: as the run measured it, and of its last steps."""
    if not run.stages_file.is_file():
        return None
    stored = read_json(run.stages_file)
    speeds = stored.get("speeds") if isinstance(stored, dict) else None
    if not isinstance(speeds, dict) or speeds.get("device") != jax.devices()[0].device_kind:
        return None
    rows = read_jsonl(run.metrics_file)
    logged = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return {**speeds, "tokens_per_second": logged[-LAST_STEPS:]}


def _speeds(stored: dict[str, Any] | None) -> Speeds | None:
    if stored is None:
        return None
    try:
        reading, training = Speed(**stored["reading"]), Speed(**stored["training"])
        rates = stored["tokens_per_second"]
        return Speeds(
            reading,
            training,
            "measured at an earlier start of this run",
            statistics.median(rates) if rates else None,
        )
    except (KeyError, TypeError):
        return None  # of another version: it is measured again


def without_weights(lm: LM, mesh: Mesh) -> tuple[LM | None, str]:
    """The model with zeros for its weights, which only have shapes, to time readings with.

    Or None, and why not: they do not fit, or the mesh wants other devices.
    """
    size = weight_bytes(lm)
    try:
        mesh.build()
    except ValueError:
        return None, f"as mesh {mesh.text} is not for the devices of this machine"
    if size > SHARE_OF_MEMORY * usable_bytes(lm.mesh) or (
        jax.default_backend() == "cpu" and size > LARGEST_ON_CPU
    ):
        return None, f"as {size / 1e9:.1f} GB of weights are too many to be timed on this machine"
    shapes = lm.mesh.shard(lm.params)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)
    return dataclasses.replace(lm, params=zeros), ""
