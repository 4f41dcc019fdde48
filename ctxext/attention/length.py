"""Attention that follows the length, which travels with the frequencies for it."""

import functools
from typing import Any

import numpy as np

from ctxext.attention.pieces import Attention, Piece
from ctxext.rope import (
    Angles,
    Float32Rotation,
    Rope,
    RopeBase,
    RopeScaling,
    Rotation,
    rope_at,
    rotation_at,
    scaling_name,
)
from ctxext.rope_by_length import RotationByLength, SequenceRotation

SHORT, LONG = 1024, 2**20
"""Lengths at which the declaration of a method is checked."""


def rotation_for(
    scaling: RopeScaling,
    attention: Attention,
    base: RopeBase,
    seq_len: int,
    angles: Angles = "exact",
) -> Rotation | Float32Rotation:
    """`rotation_at`, with what attention needs: the length that it follows, its `stretch`.

    Raises ValueError as `rotation_at`, and for two methods that do not go together.
    """
    rotation = _with_stretch(scaling, attention, base, seq_len, angles)
    if not attention.depends_on_length:
        return rotation
    return rotation._replace(seq_len=np.int32(seq_len))


@functools.lru_cache(maxsize=1024)
def _with_stretch(
    scaling: RopeScaling, attention: Attention, base: RopeBase, seq_len: int, angles: Angles
) -> Rotation | Float32Rotation:
    rotation = rotation_at(scaling, base, seq_len, angles)
    if not any(piece.stretched for piece in pieces_of_any_length(attention)):
        return rotation
    stretch = attention.stretch(rope_at(scaling, base, seq_len), base, seq_len)
    if stretch is None:
        return rotation
    if rotation.sliding is not None:
        raise ValueError(
            f"{type(attention).__name__} has other frequencies beyond some distance, and here "
            "layers with a window have others than the rest; use it over one list of frequencies"
        )
    if rotation.leading is not None:
        raise ValueError(
            f"{type(attention).__name__} has other frequencies beyond some distance, and "
            f"{scaling_name(scaling)} at the first positions; use one of them"
        )
    # numpy, because a cached result must not be of the trace that it was first asked for in.
    first = np.int32(stretch.first)
    beyond = Rope(stretch.inv_freq, rope_at(scaling, base, seq_len).attention_factor)
    return rotation._replace(stretch=(first, beyond.rotation(angles)))


def pieces_at(attention: Attention, rotation: SequenceRotation) -> tuple[Piece, ...]:
    """The pieces of a method for the length that came with the frequencies.

    Raises ValueError as `pieces_of_any_length`.
    """
    pieces = pieces_of_any_length(attention)
    if not attention.depends_on_length:
        return pieces
    if isinstance(rotation, RotationByLength) or rotation.seq_len is None:
        raise ValueError(
            f"{type(attention).__name__} follows the length, but these frequencies came without "
            "one; take them from attention.length.rotation_for"
        )
    return attention.pieces(rotation.seq_len)


@functools.lru_cache(maxsize=1024)
def pieces_of_any_length(attention: Attention) -> tuple[Piece, ...]:
    """The pieces of a method as far as they are the same at every length: masks and heads.

    Of a method that does not follow the length, all of them. Raises ValueError if something else
    changes with the length than what it declares.
    """
    pieces = attention.pieces(SHORT)
    longer = attention.pieces(LONG)
    name = type(attention).__name__
    if not attention.depends_on_length:
        if pieces != longer:
            raise ValueError(
                f"{name} gives other pieces at {LONG} tokens than at {SHORT}, but does not say so; "
                "set depends_on_length = True in the class, and make its maps functions of the "
                "file or frozen dataclasses, so that equal ones compare equal"
            )
    elif _fixed(pieces) != _fixed(longer):
        raise ValueError(
            f"{name} gives other masks or heads at {LONG} tokens than at {SHORT}; only position "
            "maps, scales and slopes may follow the length"
        )
    return pieces


def check_generation(attention: Attention) -> None:
    """Raise ValueError for attention that shows tokens which are not written yet."""
    if not all(piece.mask.causal for piece in pieces_of_any_length(attention)):
        raise ValueError(
            f"{type(attention).__name__} shows tokens that come later, and so cannot write any; "
            "generate with causal attention"
        )


def _fixed(pieces: tuple[Piece, ...]) -> list[tuple[Any, ...]]:
    """The parts of pieces that programs are built from."""
    return [
        (piece.mask, piece.heads, piece.scaled_layers, piece.unscaled_layers, piece.stretched)
        for piece in pieces
    ]
