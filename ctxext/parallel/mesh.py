"""One model over many devices: a mesh of axes and one table of rules; the model knows neither.

Axes: `data` holds copies that take different rows of a batch. `fsdp` takes different rows too, but
each device keeps only a slice of every parameter. `seq` cuts the tokens of the same rows, and the
parameters once more. `tensor` splits the heads and MLP columns of the same rows. XLA's partitioner
adds the communication (arXiv 2105.04663), except that of attention over `seq` (attention/ring.py).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ctxext.parallel import distributed

ROWS = ("data", "fsdp")
"""The axes that share the rows of a batch."""
SLICES = ("fsdp", "seq")
"""The axes that together slice every parameter."""
KERNEL = r"kernel(\.codes|\.scales)?$"
"""The end of the path of a kernel, or of the parts of a quantized one that have its layout."""
RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"\bembedding$", ("tensor", SLICES)),
    (rf"\b(q|k|v|gate|up)_proj\.{KERNEL}|\blm_head\.kernel$", (SLICES, "tensor")),
    (rf"\b(o|down)_proj\.{KERNEL}", ("tensor", SLICES)),
    (r"\b(q|k|v|gate|up)_proj\.bias$", ("tensor",)),
    (r"\b(q|k|v|gate|up)_proj\.lora_a$", (SLICES, None)),
    (r"\b(q|k|v|gate|up)_proj\.lora_b$", (None, "tensor")),
    (r"\b(o|down)_proj\.lora_a$", ("tensor", None)),
    (r"\b(o|down)_proj\.lora_b$", (None, SLICES)),
)
"""Path of a parameter -> axes of its last dimensions. All other dimensions stay whole."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of the numbers may be -1, which takes the remaining devices.

    Results differ between meshes by rounding alone, so that a run may resume on another one.
    Raises ValueError for a size below 1.
    """

    type_tag: ClassVar[str] = "mesh"
    data: int = 1
    """Copies of the model that take different rows."""
    fsdp: int = 1
    """Devices that take different rows and hold a slice of every parameter."""
    seq: int = 1
    """Devices that split the tokens of a row (ring attention), and the parameters."""
    tensor: int = 1
    """Devices that split heads and MLP columns."""

    def __post_init__(self) -> None:
        sizes = list(self.sizes.values())
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh {self.text}: every axis needs at least 1 device; "
                "one axis may be -1, which takes the remaining devices"
            )

    @property
    def sizes(self) -> dict[str, int]:
        """Devices by axis, -1 for the axis that takes the rest."""
        return {name: getattr(self, name) for name in ("data", "fsdp", "seq", "tensor")}

    @property
    def num_fixed(self) -> int:
        """The product of the sizes other than -1."""
        return math.prod(size for size in self.sizes.values() if size > 0)

    def sizes_over(self, num_devices: int) -> dict[str, int]:
        """Devices by axis out of `num_devices`, with the rest, rounded down, in place of -1."""
        rest = num_devices // self.num_fixed
        return {name: rest if size == -1 else size for name, size in self.sizes.items()}

    @property
    def text(self) -> str:
        """Sizes by axis, for people: "data 1 x fsdp 8 x seq 1 x tensor 2"."""
        return " x ".join(f"{name} {size}" for name, size in self.sizes.items())

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The jax mesh over the first of `devices`, by default this machine's.

        Raises ValueError if there are too few of them.
        """
        return _build(self, tuple(jax.devices() if devices is None else devices))

    def on(self, devices: Sequence[Any]) -> "Mesh":
        """The same axes over other devices than this machine's, such as those of a topology."""
        return _MeshOfDevices(**self.sizes, devices=tuple(devices))

    def idle(self) -> str:
        """A sentence about devices that this mesh leaves idle; empty if there are none."""
        num_used = self.build().size
        num_devices = len(jax.devices())
        if num_used == num_devices:
            return ""
        return f"{num_used} of {num_devices} devices are used; mesh.fsdp -1 takes all"

    @property
    def row_shards(self) -> int:
        """The number of parts that the rows of a batch are divided into."""
        shape = self.build().shape
        return shape["data"] * shape["fsdp"]

    def check_rows(self, rows: int, *, what: str) -> None:
        """Raise ValueError, calling them `what`, unless `rows` divide evenly over the devices."""
        shards = self.row_shards
        if rows % shards:
            raise ValueError(
                f"{what} {rows} cannot be divided over {shards} devices (mesh {self.text}: "
                f"data x fsdp); make it a multiple of {shards}"
            )

    def rows(self, array: np.ndarray, *, dim: int = 0) -> jax.Array:
        """A host array on the devices, `dim` sharded over ROWS.

        A process reads only its own rows.
        """
        sharding = NamedSharding(self.build(), PartitionSpec(*[None] * dim, ROWS))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def own_rows(self, count: int) -> list[int]:
        """Which of `count` rows the devices of this process hold."""
        sharding = NamedSharding(self.build(), PartitionSpec(ROWS))
        indices = sharding.addressable_devices_indices_map((count,)).values()
        return sorted(
            {row for index in indices if index for row in range(*index[0].indices(count))}
        )

    def activations(self, shape: tuple[int, ...], *, whole: bool = False) -> NamedSharding:
        """The sharding of an activation [B, T, ...] or [B, T, heads, H]: rows, tokens and heads.

        whole: every device has all tokens. A dimension that its axes do not divide stays whole.
        """
        mesh = self.build()
        heads = ["tensor"] if len(shape) == 4 else []
        axes = (ROWS, None if whole else "seq", *heads)
        return NamedSharding(mesh, _dividing_axes(axes, shape, dict(mesh.shape)))

    def shard(self, tree: Any, dtype: Any = None, *, name: str = "") -> Any:
        """A tree of parameters or optimiser state as `jax.ShapeDtypeStruct`s, sharded by RULES.

        name: the path of the tree itself, where it is a part of another or a single leaf.
        """
        mesh = self.build()

        def sharded(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
            inner = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            spec = partition_spec(name + inner, leaf.shape, dict(mesh.shape))
            sharding = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(sharded, tree)

    def with_sharding_constraint(self, tree: Any, *, name: str = "") -> Any:
        """The tree kept where `shard` puts it.

        So is its gradient, which is then summed in slices and never held whole.
        """
        if self.build().size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, shardings(self.shard(tree, name=name)))

    def reshard_embedding(self, params: Any) -> Any:
        """Parameters whose embedding is sliced over `fsdp` alone, where `seq` slices it as well.

        Looking tokens up, the partitioner can move one axis from the columns of the embedding to
        the tokens; for two it would first gather all activations on every device.
        """
        mesh = self.build()
        if mesh.shape["fsdp"] == 1 or mesh.shape["seq"] == 1:
            return params
        table = params["embed_tokens"]["embedding"]
        spec = _dividing_axes(("tensor", "fsdp"), table.shape, dict(mesh.shape))
        table = jax.lax.with_sharding_constraint(table, NamedSharding(mesh, spec))
        return {**params, "embed_tokens": {"embedding": table}}


ONE_DEVICE = Mesh()


@dataclasses.dataclass(frozen=True)
class _MeshOfDevices(Mesh):
    devices: tuple[Any, ...] = ()

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        return super().build(self.devices if devices is None else devices)


@functools.lru_cache(maxsize=32)
def _build(mesh: Mesh, devices: tuple[Any, ...]) -> jax.sharding.Mesh:
    sizes = mesh.sizes_over(len(devices))
    num_used = math.prod(sizes.values())
    if not 0 < num_used <= len(devices):
        raise ValueError(
            f"mesh {mesh.text} needs {max(num_used, mesh.num_fixed)} devices, this machine has "
            f"{len(devices)}; lower it, such as to mesh.fsdp 1, and train.batch_size with it"
        )
    if num_used < len(devices) and distributed.process_count() > 1:
        raise ValueError(
            f"mesh {mesh.text} uses {num_used} of the {len(devices)} devices, but every process "
            "has to take part; use all of them, such as with mesh.fsdp -1"
        )
    lengths = tuple(sizes.values())
    # Splitting a physical axis is allowed for meshes such as 8 x 8 of a 4 x 4 x 4 torus.
    placed = create_device_mesh(lengths, devices[:num_used], allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def partition_spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """How a parameter of this path and shape is sharded over axes of these sizes, by RULES.

    A dimension that its axes do not divide (a vocabulary of 32,001) stays whole.
    """
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            leading = (None,) * (len(shape) - len(axes))
            return _dividing_axes((*leading, *axes), shape, sizes)
    return PartitionSpec()


def _dividing_axes(
    axes: Sequence[Any], shape: tuple[int, ...], sizes: dict[str, int]
) -> PartitionSpec:
    """The axes that divide their dimension; the other dimensions, and those after, stay whole."""

    def divides(axis: str | tuple[str, ...], length: int) -> bool:
        names = axis if isinstance(axis, tuple) else (axis,)
        return length % int(np.prod([sizes[name] for name in names])) == 0

    pairs = zip(axes, shape, strict=False)
    return PartitionSpec(*[axis if axis and divides(axis, n) else None for axis, n in pairs])


def shardings(tree: Any) -> Any:
    """The shardings of a tree that `Mesh.shard` returned."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
