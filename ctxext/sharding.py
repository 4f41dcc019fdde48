"""One model over many devices: a mesh, one table of rules, and nothing of it in the model.

Axes: `data` holds copies that take different rows, `fsdp` also different rows but a slice of every parameter each,
`tensor` splits heads and MLP columns of the same rows. XLA's partitioner adds the communication (arXiv 2105.04663).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ctxext.attention import Attend

ROWS = ("data", "fsdp")
"""The axes that share out the rows of a batch."""
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"\bembedding$", ("tensor", "fsdp")),
    (r"\b(q|k|v|gate|up)_proj\.kernel$|\blm_head\.kernel$", ("fsdp", "tensor")),
    (r"\b(o|down)_proj\.kernel$", ("tensor", "fsdp")),
    (r"\b(q|k|v|gate|up)_proj\.bias$", ("tensor",)),
    (r"\b(q|k|v|gate|up)_proj\.lora_a$", ("fsdp", None)),
    (r"\b(q|k|v|gate|up)_proj\.lora_b$", (None, "tensor")),
    (r"\b(o|down)_proj\.lora_a$", ("tensor", None)),
    (r"\b(o|down)_proj\.lora_b$", (None, "fsdp")),
)
"""Path of a leaf -> axes of its last dimensions; the layers of a stack and whatever matches no rule stay whole."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of the numbers may be -1, which takes the devices that are left.

    Results differ between meshes by rounding alone, so that a run may go on with another one.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = [self.data, self.fsdp, self.tensor]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"mesh {self.text}: every axis needs at least 1 device; one may be -1, for the rest")

    @classmethod
    def parse(cls, sizes: Sequence[str]) -> "Mesh":
        """`["fsdp=8", "tensor=2"]` as a mesh. Raises ValueError for an axis that is not one, or no number."""
        known = [field.name for field in dataclasses.fields(cls)]
        pairs = [text.partition("=") for text in sizes]
        for (axis, _, size), text in zip(pairs, sizes, strict=True):
            if axis not in known or not re.fullmatch(r"-?\d+", size):
                raise ValueError(f"--mesh {text}: give AXIS=DEVICES with AXIS one of {', '.join(known)}")
        return cls(**{axis: int(size) for axis, _, size in pairs})

    @property
    def text(self) -> str:
        """Sizes by axis, to read."""
        return " x ".join(f"{name} {size}" for name, size in dataclasses.asdict(self).items())

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over the first of `devices`, by default this machine's. Raises ValueError if there are too few."""
        return _build(self, tuple(jax.devices() if devices is None else devices))

    def on(self, devices: Sequence[Any]) -> "Mesh":
        """The same axes over other devices than this machine's, as those that a compiler is told of."""
        return _Elsewhere(self.data, self.fsdp, self.tensor, devices=tuple(devices))

    def check_rows(self, rows: int, *, what: str) -> None:
        """Raise ValueError unless `rows` can be shared out evenly."""
        shards = self.row_shards
        if rows % shards:
            raise ValueError(f"{what} {rows} cannot be shared out over {shards} devices (mesh {self.text}: data x "
                             f"fsdp); make it a multiple of {shards}")  # fmt: skip

    def idle(self) -> str:
        """A line about devices that this mesh leaves idle; empty if there are none."""
        used, there = self.build().size, len(jax.devices())
        return f"{used} of {there} devices are used; --mesh.fsdp -1 takes all" if used < there else ""

    @property
    def row_shards(self) -> int:
        """Parts that a batch is cut into."""
        shape = self.build().shape
        return shape["data"] * shape["fsdp"]

    def rows(self, array: np.ndarray, *, dim: int = 0) -> jax.Array:
        """A host array on the devices, `dim` shared out over the rows axes."""
        return jax.device_put(array, NamedSharding(self.build(), PartitionSpec(*[None] * dim, ROWS)))

    def shard(self, tree: Any, dtype: Any = None) -> Any:
        """The tree as `jax.ShapeDtypeStruct`s with their shardings: a tree of parameters or an optimiser's state."""
        mesh = self.build()

        def place(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            sharding = NamedSharding(mesh, spec(name, leaf.shape, dict(mesh.shape)))
            return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(place, tree)


ONE_DEVICE = Mesh()


@dataclasses.dataclass(frozen=True)
class _Elsewhere(Mesh):
    devices: tuple[Any, ...] = ()

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        return super().build(self.devices if devices is None else devices)


@functools.lru_cache(maxsize=32)
def _build(shape: Mesh, found: tuple[Any, ...]) -> jax.sharding.Mesh:
    sizes = {axis: getattr(shape, axis) for axis in ("data", "fsdp", "tensor")}
    given = int(np.prod([size for size in sizes.values() if size > 0]))
    sizes = {name: len(found) // given if size == -1 else size for name, size in sizes.items()}
    total = int(np.prod(list(sizes.values())))
    if not 0 < total <= len(found):
        raise ValueError(f"mesh {shape.text} needs {max(total, given)} devices, this machine has {len(found)}; "
                         "lower it, as with --mesh.fsdp 1, and train.batch_size with it")  # fmt: skip
    types = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=found[:total])


def spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """Where a leaf is cut. A dimension that its axis does not divide (a vocabulary of 32,001) stays whole."""
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            last = shape[len(shape) - len(axes) :]
            kept = [axis if axis and size % sizes[axis] == 0 else None for axis, size in zip(axes, last, strict=True)]
            return PartitionSpec(*[None] * (len(shape) - len(axes)), *kept)
    return PartitionSpec()


def shardings(tree: Any) -> Any:
    """The shardings of a tree that `Mesh.shard` made."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def over_devices(attend: Attend, mesh: Mesh) -> Attend:
    """`attend` with rows and heads kept where they are: what it is given pins the activations of every layer."""
    built = mesh.build()
    if built.size == 1:
        return attend
    rows = mesh.row_shards

    def pin(x: jax.Array) -> jax.Array:
        axes = ROWS if x.shape[0] % rows == 0 else None, "tensor" if x.shape[2] % built.shape["tensor"] == 0 else None
        return jax.lax.with_sharding_constraint(x, NamedSharding(built, PartitionSpec(axes[0], None, axes[1])))

    def pinned(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, layer: Any) -> tuple[jax.Array, Any]:
        out, cache = attend(pin(q), pin(k), pin(v), cache, layer)
        return pin(out), cache

    return pinned
