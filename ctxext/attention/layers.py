"""Differences between the layers of a model in attention, as data: windows and rotation.

The kind of a layer is a number, static for a layer that runs by itself and traced inside a scan, so
that one program runs layers of all kinds.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from ctxext.attention.pieces import Attention, LinearBias, PerKind, Piece, within
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
class Layers:
    """The kinds of layers of a model, and the bias that all of them add to their scores."""

    kinds: tuple[LayerKind, ...] = (LayerKind(),)
    bias: LinearBias | None = None

    def pieces(self, attention: Attention, kind: Kind = 0) -> tuple[Piece, ...]:
        """The pieces of a method as layers of this kind evaluate them.

        Where it is traced, and not all kinds see the same, the masks are a `PerKind`.
        """
        kinds = (self.kinds[kind],) if isinstance(kind, int) else self.kinds

        def of_layer(piece: Piece) -> Piece:
            masks = tuple(within(piece.mask, kind.window) for kind in kinds)
            mask = masks[0] if len(set(masks)) == 1 else PerKind(masks)
            return dataclasses.replace(piece, mask=mask, bias=self.bias)

        return tuple(of_layer(piece) for piece in attention.pieces())

    @property
    def rotates(self) -> bool:
        """Whether any layer rotates queries and keys."""
        return any(kind.rotates for kind in self.kinds)

    def rotation(self, kind: Kind) -> Callable[[Array, tuple[Array, Array]], Array]:
        """`rotate(x, (cos, sin))` of a layer of this kind."""
        rotates = tuple(kind.rotates for kind in self.kinds)
        if isinstance(kind, int):
            return _turn if rotates[kind] else _keep
        if len(set(rotates)) == 1:
            return _turn if rotates[0] else _keep
        is_turned = jnp.asarray(rotates)[kind]

        def turn_or_keep(x: Array, tables: tuple[Array, Array]) -> Array:
            cos, sin = tables
            return rotate(x, jnp.where(is_turned, cos, 1), jnp.where(is_turned, sin, 0))

        return turn_or_keep


def _turn(x: Array, tables: tuple[Array, Array]) -> Array:
    return rotate(x, *tables)


def _keep(x: Array, tables: tuple[Array, Array]) -> Array:
    return x


ALIKE = Layers()
"""Layers that are all alike, as Llama's."""
