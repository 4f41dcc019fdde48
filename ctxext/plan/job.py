"""What one training step is made of, in numbers; shapes alone, nothing is allocated."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from ctxext.attention import Attention
from ctxext.experiment import Experiment
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.parallel.mesh import Mesh, partition_spec


@dataclasses.dataclass(frozen=True, eq=False)
class Trees:
    """Shapes of what a step holds from beginning to end."""

    trained: Params
    optimizer: Any
    frozen: Params

    @classmethod
    def of(cls, experiment: Experiment, config: LlamaConfig) -> "Trees":
        """Parameters that are trained (float32), their optimiser's state, and the others in the compute dtype."""
        trained, frozen = experiment.trainable.shapes(config)
        optimizer = jax.eval_shape(experiment.optim.build(experiment.train.steps).init, trained)
        dtype = experiment.train.dtype
        return cls(
            trained, optimizer, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), frozen)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One training step: a model, what of it is trained, a batch, and the devices along each axis of the mesh."""

    config: LlamaConfig
    trees: Trees
    attention: Attention
    sizes: dict[str, int]
    batch_size: int
    accumulate: int
    seq_len: int
    dtype: str
    remat: str
    kernel: str

    @classmethod
    def of(cls, experiment: Experiment, config: LlamaConfig, devices: int) -> "Job":
        """The step of an experiment on so many devices. Raises ValueError if its mesh or batch does not fit them."""
        sizes, train = axes(experiment.mesh, devices), experiment.train
        job = cls(
            config,
            Trees.of(experiment, config),
            experiment.attention,
            sizes,
            train.batch_size,
            train.accumulate,
            train.seq_len,
            train.dtype,
            train.remat,
            train.kernel,
        )
        if train.batch_size % job.row_shards:
            raise ValueError(
                f"train.batch_size {train.batch_size} cannot be shared out over {job.row_shards} devices "
                f"(data x fsdp); make it a multiple of {job.row_shards}"
            )
        return job

    @property
    def devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def row_shards(self) -> int:
        return self.sizes["data"] * self.sizes["fsdp"]

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch that a device works on."""
        return self.batch_size // self.row_shards * -(-self.seq_len // self.sizes["seq"])

    @property
    def width(self) -> int:
        """Bytes of a number in the compute dtype."""
        return jnp.dtype(self.dtype).itemsize

    @functools.cached_property
    def backward_layers(self) -> int:
        """Layers that a gradient passes through: from the first trained one on."""
        trained = self.trees.trained
        if "embed_tokens" in trained:
            return self.config.num_hidden_layers
        return sum(layers(stack) for stack in trained.get("segments", {}).values())

    def bytes(self, tree: Any, only: str = "") -> int:
        """Bytes of a tree on one device, under the mesh's table of rules; only: of the paths where this is found."""
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        named = [
            (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves
        ]
        return sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize // self._parts(name, leaf)
            for name, leaf in named
            if re.search(only, name)
        )

    def _parts(self, name: str, leaf: Any) -> int:
        cut = [axis for axis in partition_spec(name, leaf.shape, self.sizes) if axis]
        names = [name for axis in cut for name in (axis if isinstance(axis, tuple) else (axis,))]
        return math.prod(self.sizes[name] for name in names)


def layers(stack: Params) -> int:
    """Layers of a stacked segment."""
    return jax.tree.leaves(stack)[0].shape[0]


def count(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def axes(mesh: Mesh, devices: int) -> dict[str, int]:
    """Devices along every axis, -1 resolved. Raises ValueError unless they are `devices` together."""
    sizes = mesh.sizes
    given = math.prod(size for size in sizes.values() if size > 0)
    if -1 in sizes.values() and devices % given == 0:
        sizes = {name: devices // given if size == -1 else size for name, size in sizes.items()}
    elif given != devices or -1 in sizes.values():
        raise ValueError(
            f"mesh {mesh.text} is for {given} devices, the topology has {devices}; "
            "--mesh.fsdp -1 takes them all"
        )
    return sizes
