"""The rotary tables of pieces, in which queries are scaled by their positions too.

A rotation is linear, so that a multiplier of a query is one of its cos and sin: no kernel needs to
know of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention.pieces import Piece, PositionMap
from ctxext.rope import Float32Rotation, Rotation
from ctxext.rope_by_length import ChosenRotation

AnyRotation = Rotation | Float32Rotation | ChosenRotation
"""Frequencies in any form that turns positions into tables."""


class Tables(NamedTuple):
    """cos and sin [..., H/2] of one piece, of its queries or of its keys."""

    cos: Float[Array, "*shape h"]
    sin: Float[Array, "*shape h"]
    scale: Float[Array, "*shape"] | None = None
    """Multiplies queries in layers that do not rotate; None: by 1."""
    unscaled: tuple[int, Array, Array] | None = None
    """The number of first layers that scale nothing, and their cos and sin; None: none."""
    sliding: "Tables | None" = None
    """Those of layers with a sliding window; None: these."""

    def in_layer(self, number: Any) -> "Tables":
        """The tables of a layer by its number in the model, from 0, which may be traced."""
        sliding = None if self.sliding is None else self.sliding.in_layer(number)
        if self.scale is None or self.unscaled is None:
            return self._replace(sliding=sliding)
        layers, cos, sin = self.unscaled
        is_unscaled = number < layers
        return Tables(
            jnp.where(is_unscaled, cos, self.cos),
            jnp.where(is_unscaled, sin, self.sin),
            jnp.where(is_unscaled, 1, self.scale),
            sliding=sliding,
        )


def query_tables(
    piece: Piece,
    rotation: AnyRotation,
    positions: Int[Array, "*shape"],
    begins: Any = 0,
) -> Tables:
    """The tables of queries at these positions of documents that begin at `begins`."""
    return _with_sliding(_query_tables, piece, rotation, positions, begins)


def key_tables(
    piece: Piece,
    rotation: AnyRotation,
    positions: Int[Array, "*shape"],
    begins: Any = 0,
) -> Tables:
    """The tables of keys at these positions of documents that begin at `begins`."""
    return _with_sliding(_key_tables, piece, rotation, positions, begins)


def _with_sliding(
    tables_of: Callable[..., Tables],
    piece: Piece,
    rotation: AnyRotation,
    positions: Array,
    begins: Any,
) -> Tables:
    """The tables by a rotation, and those of layers with a window where they have one of theirs."""
    tables = tables_of(piece, rotation, positions, begins)
    if rotation.sliding is None:
        return tables
    return tables._replace(sliding=tables_of(piece, rotation.sliding, positions, begins))


def _query_tables(piece: Piece, rotation: AnyRotation, positions: Array, begins: Any) -> Tables:
    whole, part = _mapped(piece.query_positions, positions, begins)
    if piece.stretched:
        first, beyond = _stretch_of(rotation)
        turn = rotation._replace(attention_factor=1.0).tables(jnp.full_like(whole, first))
        cos, sin = _turned(beyond.tables(whole - first, part), turn)
    else:
        cos, sin = rotation.tables(whole, part)
    if piece.query_scale is None:
        return Tables(cos, sin)
    scale = jnp.asarray(piece.query_scale(positions - begins), jnp.float32)
    scale = jnp.broadcast_to(scale, positions.shape)
    unscaled = (piece.unscaled_layers, cos, sin) if piece.unscaled_layers else None
    if piece.scaled_layers == "all":
        cos = cos * scale[..., None]
        sin = sin * scale[..., None]
    return Tables(cos, sin, scale, unscaled)


def _key_tables(piece: Piece, rotation: AnyRotation, positions: Array, begins: Any) -> Tables:
    whole, part = _mapped(piece.key_positions, positions, begins)
    if piece.stretched:
        _, beyond = _stretch_of(rotation)
        return Tables(*beyond.tables(whole, part))
    return Tables(*rotation.tables(whole, part))


def _stretch_of(rotation: AnyRotation) -> tuple[Array, Any]:
    """See `attention.pieces.Stretch`; raises ValueError for frequencies that came without one."""
    if isinstance(rotation, ChosenRotation) or rotation.stretch is None:
        raise ValueError(
            "this method has other frequencies beyond some distance, but these came without them; "
            "take them from attention.length.rotation_for"
        )
    return rotation.stretch


def _turned(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """cos and sin of the sum of two angles."""
    (cos, sin), (more_cos, more_sin) = one, other
    return cos * more_cos - sin * more_sin, sin * more_cos + cos * more_sin


def _mapped(
    position_map: PositionMap, positions: Int[Array, "*shape"], begins: Any
) -> tuple[Int[Array, "*shape"], Float[Array, "*shape"] | None]:
    """The whole part of a rotary position and the rest of it, None if there is none.

    In a document that begins at b, position p is rotated at b + map(p - b). Distances are those of
    the document alone, and a map that changes nothing is exact.
    """
    exact = getattr(position_map, "whole_and_part", None)
    if exact is not None:
        whole, part = exact(positions - begins)
        return begins + whole, part
    mapped = position_map(positions - begins)
    if not jnp.issubdtype(mapped.dtype, jnp.floating):
        return begins + mapped, None
    whole = jnp.floor(mapped)
    return begins + whole.astype(jnp.int32), mapped - whole
