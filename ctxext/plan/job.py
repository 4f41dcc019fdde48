"""The quantities of one training step: shapes, batch, mesh. Nothing is allocated."""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from ctxext.attention import Attention
from ctxext.experiment import Experiment
from ctxext.losses import Lengths, Loss
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params
from ctxext.model.quantized import cast_floats, tree_leaves
from ctxext.parallel.mesh import Mesh, partition_spec
from ctxext.training.state import teacher_of


@dataclasses.dataclass(frozen=True, eq=False)
class Trees:
    """Shapes of the arrays that are held during the whole step."""

    trained: Params
    """Float32."""
    optimizer: Any
    frozen: Params
    """In the compute dtype, or quantized."""
    teacher: Params = dataclasses.field(default_factory=dict)
    """The base's values of what is trained, in the compute dtype, for a loss with a teacher."""

    @classmethod
    def of(cls, experiment: Experiment, config: LlamaConfig) -> "Trees":
        """The trees of an experiment on a base of this shape."""
        trained, frozen = experiment.trainable.shapes(config)
        optimizer = experiment.optim.build(experiment.train.steps)
        dtype = experiment.train.dtype
        return cls(
            trained=trained,
            optimizer=jax.eval_shape(optimizer.init, trained),
            frozen=cast_floats(frozen, dtype),
            teacher=cast_floats(teacher_of(experiment, trained), dtype),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One training step: a model, its trained part, a batch, and the devices per mesh axis."""

    config: LlamaConfig
    trees: Trees
    attention: Attention
    loss: Loss
    sizes: dict[str, int]
    batch_size: int
    accumulate: int
    seq_len: int
    dtype: str
    remat: str
    kernel: str

    @classmethod
    def of(cls, experiment: Experiment, config: LlamaConfig, devices: int) -> "Job":
        """The step of an experiment on so many devices.

        Raises ValueError if its mesh or batch does not fit them.
        """
        train = experiment.train
        job = cls(
            config=config,
            trees=Trees.of(experiment, config),
            attention=experiment.attention,
            loss=experiment.loss,
            sizes=axes(experiment.mesh, devices),
            batch_size=train.batch_size,
            accumulate=train.accumulate,
            seq_len=train.seq_len,
            dtype=train.dtype,
            remat=train.remat,
            kernel=train.kernel,
        )
        if train.batch_size % job.row_shards:
            raise ValueError(
                f"train.batch_size {train.batch_size} cannot be divided among {job.row_shards} "
                f"devices (data x fsdp); make it a multiple of {job.row_shards}"
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
        """Tokens of a microbatch per device."""
        return self.batch_size // self.row_shards * -(-self.seq_len // self.sizes["seq"])

    @property
    def lengths(self) -> Lengths:
        """The lengths that the passes of the loss depend on."""
        return Lengths(self.seq_len, self.config.max_position_embeddings, self.seq_len)

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
        return sum(num_layers(stack) for stack in trained.get("segments", {}).values())

    def bytes(self, tree: Any, only: str = "") -> int:
        """Bytes of a tree on one device, by the sharding rules of the mesh.

        only: count the leaves in whose path this regular expression is found.
        """
        total = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if re.search(only, name):
                size = math.prod(leaf.shape) * leaf.dtype.itemsize
                total += size // self._num_parts(name, leaf)
        return total

    def _num_parts(self, name: str, leaf: Any) -> int:
        """Parts that a leaf is cut into."""
        parts = 1
        for axis in partition_spec(name, leaf.shape, self.sizes):
            if axis:
                names = axis if isinstance(axis, tuple) else (axis,)
                parts *= math.prod(self.sizes[name] for name in names)
        return parts


def num_layers(stack: Params) -> int:
    """Layers of a stacked segment."""
    return jax.tree.leaves(stack)[0].shape[0]


def count(tree: Any) -> int:
    """Entries of all leaves of a tree; a quantized kernel counts as the float one."""
    return sum(math.prod(leaf.shape) for leaf in tree_leaves(tree))


def axes(mesh: Mesh, devices: int) -> dict[str, int]:
    """Devices along every axis, -1 resolved.

    Raises ValueError unless the mesh takes exactly `devices`.
    """
    sizes = mesh.sizes_over(devices)
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh {mesh.text} is for {mesh.num_fixed} devices, the topology has {devices}; "
            "--mesh.fsdp -1 takes them all"
        )
    return sizes
