"""One model over many devices: a mesh, one table of rules, and nothing of it in the model.

Axes: `data` holds copies that take different rows, `fsdp` also different rows but a slice of every parameter each,
`seq` cuts the tokens of the same rows and the parameters once more, `tensor` splits heads and MLP columns of the same
rows. XLA's partitioner adds the communication (arXiv 2105.04663), but for attention's over `seq` (attention/ring.py).
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ctxext.attention import Attend, Attention, Kernel, make_attention
from ctxext.attention.ring import zigzag
from ctxext.parallel import distributed
from ctxext.rope import Float32Rotation, Rotation

ROWS = ("data", "fsdp")
"""The axes that share out the rows of a batch."""
SLICES = ("fsdp", "seq")
"""The axes that together cut every parameter."""
RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"\bembedding$", ("tensor", SLICES)),
    (r"\b(q|k|v|gate|up)_proj\.kernel$|\blm_head\.kernel$", (SLICES, "tensor")),
    (r"\b(o|down)_proj\.kernel$", ("tensor", SLICES)),
    (r"\b(q|k|v|gate|up)_proj\.bias$", ("tensor",)),
    (r"\b(q|k|v|gate|up)_proj\.lora_a$", (SLICES, None)),
    (r"\b(q|k|v|gate|up)_proj\.lora_b$", (None, "tensor")),
    (r"\b(o|down)_proj\.lora_a$", ("tensor", None)),
    (r"\b(o|down)_proj\.lora_b$", (None, SLICES)),
)
"""Path of a leaf -> axes of its last dimensions; the layers of a stack and whatever matches no rule stay whole."""


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of the numbers may be -1, which takes the devices that are left.

    Results differ between meshes by rounding alone, so that a run may go on with another one.
    """

    type_tag: ClassVar[str] = "mesh"
    data: int = 1
    fsdp: int = 1
    seq: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = [*self.sizes.values()]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                f"mesh {self.text}: every axis needs at least 1 device; one may be -1, for the rest"
            )

    @classmethod
    def parse(cls, sizes: Sequence[str]) -> "Mesh":
        """`["fsdp=8", "tensor=2"]` as a mesh. Raises ValueError for an axis that is not one, or no number."""
        known = [*cls().sizes]
        pairs = [text.partition("=") for text in sizes]
        for (axis, _, size), text in zip(pairs, sizes, strict=True):
            if axis not in known or not re.fullmatch(r"-?\d+", size):
                raise ValueError(
                    f"--mesh {text}: give AXIS=DEVICES with AXIS one of {', '.join(known)}"
                )
        return cls(**{axis: int(size) for axis, _, size in pairs})

    @property
    def sizes(self) -> dict[str, int]:
        """Devices by axis."""
        return {name: getattr(self, name) for name in ("data", "fsdp", "seq", "tensor")}

    @property
    def text(self) -> str:
        """Sizes by axis, to read."""
        return " x ".join(f"{name} {size}" for name, size in self.sizes.items())

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """The mesh over the first of `devices`, by default this machine's. Raises ValueError if there are too few."""
        return _build(self, tuple(jax.devices() if devices is None else devices))

    def on(self, devices: Sequence[Any]) -> "Mesh":
        """The same axes over other devices than this machine's, as those that a compiler is told of."""
        return _Elsewhere(**self.sizes, devices=tuple(devices))

    def check_rows(self, rows: int, *, what: str) -> None:
        """Raise ValueError unless `rows` can be shared out evenly."""
        shards = self.row_shards
        if rows % shards:
            raise ValueError(
                f"{what} {rows} cannot be shared out over {shards} devices (mesh {self.text}: data x "
                f"fsdp); make it a multiple of {shards}"
            )

    def idle(self) -> str:
        """A line about devices that this mesh leaves idle; empty if there are none."""
        used, there = self.build().size, len(jax.devices())
        return (
            f"{used} of {there} devices are used; --mesh.fsdp -1 takes all" if used < there else ""
        )

    @property
    def row_shards(self) -> int:
        """Parts that a batch is cut into."""
        shape = self.build().shape
        return shape["data"] * shape["fsdp"]

    def rows(self, array: np.ndarray, *, dim: int = 0) -> jax.Array:
        """A host array on the devices, `dim` shared out over the rows axes; a process reads only its own rows."""
        sharding = NamedSharding(self.build(), PartitionSpec(*[None] * dim, ROWS))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def own_rows(self, count: int) -> list[int]:
        """Which of `count` rows the devices of this process hold."""
        parts = (
            NamedSharding(self.build(), PartitionSpec(ROWS))
            .addressable_devices_indices_map((count,))
            .values()
        )
        return sorted({row for part in parts if part for row in range(*part[0].indices(count))})

    def kernel(self, kernel: Kernel) -> Kernel:
        """The kernel for whole sequences: over a `seq` axis the ring. Raises ValueError for one that cannot be cut."""
        if self.seq == 1:
            return "blocked" if kernel == "ring" else kernel  # a ring of one
        if kernel not in ("auto", "blocked", "ring"):
            raise ValueError(
                f"kernel {kernel!r} needs whole sequences, mesh {self.text} cuts them; use blocked or "
                "auto, which become ring attention there, or mesh.seq 1"
            )
        return "ring"

    def activations(self, shape: tuple[int, ...], *, whole: bool = False) -> NamedSharding:
        """Of [B, T, ...] or [B, T, heads, H]: rows, tokens (unless `whole`) and heads shared out where they divide."""
        mesh = self.build()
        axes = (ROWS, None if whole else "seq", *(["tensor"] if len(shape) == 4 else []))
        return NamedSharding(mesh, _divided(axes, shape, dict(mesh.shape)))

    def ring_order(self, x: jax.Array) -> jax.Array:
        """[B, T, ...] with the tokens in the order that ring attention wants, shared out over `seq`."""
        S = self.build().shape["seq"]
        return (
            x
            if S == 1
            else jax.lax.with_sharding_constraint(
                x[:, zigzag(x.shape[1], S)], self.activations(x.shape)
            )
        )

    def token_order(self, x: jax.Array) -> jax.Array:
        """The inverse of `ring_order`."""
        S = self.build().shape["seq"]
        return x if S == 1 else x[:, np.argsort(zigzag(x.shape[1], S))]

    def shard(self, tree: Any, dtype: Any = None, *, name: str = "") -> Any:
        """The tree as `jax.ShapeDtypeStruct`s with their shardings: a tree of parameters or an optimiser's state.

        name: the path of the tree itself, where it is a part of another or a single leaf.
        """
        mesh = self.build()

        def place(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
            full = name + jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(
                ".value"
            )
            sharding = NamedSharding(mesh, spec(full, leaf.shape, dict(mesh.shape)))
            return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(place, tree)

    def reshard_embedding(self, params: Any) -> Any:
        """Parameters whose embedding is cut over `fsdp` alone, if both `fsdp` and `seq` cut the tokens too.

        The partitioner moves one axis from the columns of what is looked up to its tokens; for two it would first
        gather all activations on every device.
        """
        mesh = self.build()
        if mesh.shape["fsdp"] == 1 or mesh.shape["seq"] == 1:
            return params
        table = params["embed_tokens"]["embedding"]
        place = NamedSharding(mesh, _divided(("tensor", "fsdp"), table.shape, dict(mesh.shape)))
        return {
            **params,
            "embed_tokens": {"embedding": jax.lax.with_sharding_constraint(table, place)},
        }

    def with_sharding_constraint(self, tree: Any, *, name: str = "") -> Any:
        """The tree kept where `shard` puts it; so is its gradient, which then is summed in slices, never whole."""
        if self.build().size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, shardings(self.shard(tree, name=name)))


ONE_DEVICE = Mesh()


@dataclasses.dataclass(frozen=True)
class _Elsewhere(Mesh):
    devices: tuple[Any, ...] = ()

    def build(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        return super().build(self.devices if devices is None else devices)


@functools.lru_cache(maxsize=32)
def _build(shape: Mesh, found: tuple[Any, ...]) -> jax.sharding.Mesh:
    sizes = shape.sizes
    given = int(np.prod([size for size in sizes.values() if size > 0]))
    sizes = {name: len(found) // given if size == -1 else size for name, size in sizes.items()}
    total = int(np.prod(list(sizes.values())))
    if not 0 < total <= len(found):
        raise ValueError(
            f"mesh {shape.text} needs {max(total, given)} devices, this machine has {len(found)}; "
            "lower it, as with --mesh.fsdp 1, and train.batch_size with it"
        )
    if total < len(found) and distributed.process_count() > 1:
        raise ValueError(
            f"mesh {shape.text} uses {total} of the {len(found)} devices, but every process has to take "
            "part: use all of them, as with --mesh.fsdp -1"
        )
    lengths = tuple(sizes.values())
    placed = create_device_mesh(
        lengths, found[:total], allow_split_physical_axes=True
    )  # 8 x 8 of a 4 x 4 x 4 torus
    return jax.sharding.Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """Where a leaf is cut. A dimension that its axis does not divide (a vocabulary of 32,001) stays whole."""
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            leading = (None,) * (len(shape) - len(axes))
            return _divided((*leading, *axes), shape, sizes)
    return PartitionSpec()


def _divided(axes: Sequence[Any], shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    """The axes that divide their dimension; the others' dimensions stay whole."""

    def parts(axis: Any) -> int:
        return int(
            np.prod([sizes[name] for name in (axis if isinstance(axis, tuple) else (axis,))])
        )

    kept = zip(axes, shape, strict=False)  # dimensions behind the last axis stay whole
    return PartitionSpec(*[axis if axis and n % parts(axis) == 0 else None for axis, n in kept])


def shardings(tree: Any) -> Any:
    """The shardings of a tree that `Mesh.shard` made."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def shard_attention(attend: Attend, mesh: Mesh, *, whole: bool = False) -> Attend:
    """`attend` with rows, tokens and heads kept where they are: this pins the activations of every layer.

    whole: every device of the `seq` axis has all tokens.
    """
    if mesh.build().size == 1:
        return attend

    def pin(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, mesh.activations(x.shape, whole=whole))

    def pinned(
        q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, layer: Any
    ) -> tuple[jax.Array, Any]:
        out, cache = attend(pin(q), pin(k), pin(v), cache, layer)
        return pin(out), cache

    return pinned


def make_sharded_attention(
    mesh: Mesh,
    attention: Attention,
    kernel: Kernel,
    rotation: Rotation | Float32Rotation,
    positions: jax.Array,
    segment_ids: jax.Array | None = None,
) -> Attend:
    """Attention of whole sequences over the devices of a mesh; tokens come in its `ring_order`."""
    attend = make_attention(
        attention, mesh.kernel(kernel), rotation, positions, segment_ids, mesh.activations
    )
    return shard_attention(attend, mesh)
