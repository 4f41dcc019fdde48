"""Differences between the layers of a model in attention, as data: windows and rotation.

Layers with a window may rotate by other frequencies than the rest, see `Tables.sliding`.

The kind of a layer is a number, static for a layer that runs by itself and traced inside a scan, so
that one program runs layers of all kinds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ctxext.attention.bias import LinearBias
from ctxext.attention.pieces import Mask, Piece, QueryScale, within
from ctxext.attention.tables import Tables
from ctxext.attention.temperature import scaled
from ctxext.rope import rotate

Kind = int | Array
"""The number of a kind in `Layers.kinds`."""


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """How a layer attends, in addition to the method that all layers share."""

    window: int | None = None
    """Tokens that are visible, the query among them; None: all."""
    rotates: bool = True
    """Queries and keys are rotated; False: a layer without positions (NoPE, arXiv 2305.19466)."""


@dataclasses.dataclass(frozen=True)
class PerKind:
    """One mask for each kind of layer, for a layer whose kind is known only when it runs."""

    masks: tuple[Mask, ...]
    """In the order of `Layers.kinds`."""

    @property
    def by_distance(self) -> bool:
        """Whether all of them depend on distances only, see `Mask.by_distance`."""
        return all(mask.by_distance for mask in self.masks)

    @property
    def causal(self) -> bool:
        """Whether none of them shows later tokens, see `Mask.causal`."""
        return all(mask.causal for mask in self.masks)

    def visible(self, kind: Kind, query: Any, key: Any) -> Any:
        """`Mask.visible` of the mask of this kind."""
        visible = self.masks[0].visible(query, key)
        for number, other in enumerate(self.masks[1:], start=1):
            is_kind = kind == number
            visible = (is_kind & other.visible(query, key)) | (~is_kind & visible)
        return visible


LayerMask = Mask | PerKind
"""The mask of a piece in a layer, or one for each kind where the kind of the layer is traced."""


def visible_in(mask: LayerMask, kind: Any, query: Any, key: Any) -> Any:
    """`Mask.visible` in a layer of this kind, which only a `PerKind` reads."""
    if isinstance(mask, PerKind):
        return mask.visible(kind, query, key)
    return mask.visible(query, key)


@dataclasses.dataclass(frozen=True)
class Layers:
    """The kinds of layers of a model, and the bias and the temperature that all of them have."""

    kinds: tuple[LayerKind, ...] = (LayerKind(),)
    bias: LinearBias | None = None
    query_scale: QueryScale | None = None
    """A factor for the queries of all layers, given their positions; None: no factor."""

    def scaled(self, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
        """The pieces of a method as layers of this model evaluate them, with its own scale.

        Raises ValueError for a method that scales the queries of some layers only.
        """
        if self.query_scale is None:
            return tuple(pieces)
        names = "the temperature of this model and that of the method"
        return tuple(scaled(piece, self.query_scale, names) for piece in pieces)

    def masks(self, pieces: Sequence[Piece], kind: Kind = 0) -> tuple[LayerMask, ...]:
        """The mask of each piece, as layers of this kind evaluate it."""
        kinds = (self.kinds[kind],) if isinstance(kind, int) else self.kinds

        def of_layer(mask: Mask) -> LayerMask:
            masks = tuple(within(mask, kind.window) for kind in kinds)
            return masks[0] if len(set(masks)) == 1 else PerKind(masks)

        return tuple(of_layer(piece.mask) for piece in pieces)

    @property
    def rotates(self) -> bool:
        """Whether any layer rotates queries and keys."""
        return any(kind.rotates for kind in self.kinds)

    def rotation(self, kind: Kind, number: Any = 0) -> Callable[[Array, Tables], Array]:
        """`rotate(x, tables)` of a layer; queries are scaled by their tables too.

        kind, number: those of the layer, the number in the model from 0. Both may be traced.
        """
        turn = self._turn_of(kind)
        return lambda x, tables: turn(x, tables.in_layer(number))

    def _turn_of(self, kind: Kind) -> Callable[[Array, Tables], Array]:
        if isinstance(kind, int):
            return _rotation_of(self.kinds[kind])
        rotations = tuple(_rotation_of(kind) for kind in self.kinds)
        if len(set(rotations)) == 1:
            return rotations[0]

        def rotate_by_kind(x: Array, tables: Tables) -> Array:
            cos, sin = tables.cos, tables.sin
            if tables.sliding is not None:
                has_window = jnp.asarray([kind.window is not None for kind in self.kinds])[kind]
                cos = jnp.where(has_window, tables.sliding.cos, cos)
                sin = jnp.where(has_window, tables.sliding.sin, sin)
            if not all(kind.rotates for kind in self.kinds):
                is_turned = jnp.asarray([kind.rotates for kind in self.kinds])[kind]
                unturned = 1 if tables.scale is None else tables.scale[..., None]
                cos = jnp.where(is_turned, cos, unturned)
                sin = jnp.where(is_turned, sin, 0)
            return rotate(x, cos, sin)

        return rotate_by_kind


def _rotation_of(kind: LayerKind) -> Callable[[Array, Tables], Array]:
    if not kind.rotates:
        return _keep
    return _turn if kind.window is None else _turn_in_window


def _turn(x: Array, tables: Tables) -> Array:
    return rotate(x, tables.cos, tables.sin)


def _turn_in_window(x: Array, tables: Tables) -> Array:
    return _turn(x, tables if tables.sliding is None else tables.sliding)


def _keep(x: Array, tables: Tables) -> Array:
    if tables.scale is None:
        return x
    return (x.astype(jnp.float32) * tables.scale[..., None, None]).astype(x.dtype)


ALIKE = Layers()
"""Layers that are all alike, as Llama's."""
