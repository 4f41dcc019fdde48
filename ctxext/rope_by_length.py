"""Frequencies by the length of each document, for methods with one list per range of lengths."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.rope import (
    LONG,
    Angles,
    Float32Rotation,
    RopeBase,
    RopeScaling,
    Rotation,
    rope_at,
    rotation_at,
)


class ChosenRotation(NamedTuple):
    """One of several rotations for each token, in the form of a `Rotation` of all of them."""

    choice: Int[Array, "b t"]
    rotations: tuple[Rotation | Float32Rotation, ...]

    @property
    def leading(self) -> tuple[Array, Rotation | Float32Rotation] | None:
        """That of the rotations, which all have the same; see `Rotation.leading`."""
        return self.rotations[0].leading

    @property
    def sliding(self) -> "ChosenRotation | None":
        """The same choice for layers with a sliding window; see `Rotation.sliding`."""
        if all(rotation.sliding is None for rotation in self.rotations):
            return None
        of_windows = tuple(
            rotation if rotation.sliding is None else rotation.sliding
            for rotation in self.rotations
        )
        return ChosenRotation(self.choice, of_windows)

    def tables(
        self, positions: Int[Array, "b t"], part: Float[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b t h"]]:
        """cos and sin times attention_factor, float32 [B, T, H/2]; part: see `Rotation.tables`."""
        cos, sin = self.rotations[0].tables(positions, part)
        for number, rotation in enumerate(self.rotations[1:], start=1):
            is_chosen = (self.choice == number)[..., None]
            other_cos, other_sin = rotation.tables(positions, part)
            cos = jnp.where(is_chosen, other_cos, cos)
            sin = jnp.where(is_chosen, other_sin, sin)
        return cos, sin


class RotationByLength(NamedTuple):
    """The rotations of a scaling, one per range of lengths: a pytree, so that one program runs all.

    Rotation i is that of lengths up to limits[i], int32 and ascending; the last has no limit.
    """

    limits: Int[Array, "limits"]
    rotations: tuple[Rotation | Float32Rotation, ...]

    def of_lengths(self, lengths: Int[Array, "b t"]) -> ChosenRotation:
        """The rotation of each token; `lengths` has that of its document, in tokens."""
        is_longer = lengths[..., None] > self.limits[None, None]
        return ChosenRotation(is_longer.sum(-1), self.rotations)


SequenceRotation = Rotation | Float32Rotation | RotationByLength
"""The rotation of whole sequences: one for all, or one for each document in them."""


def checked_switch_lengths(scaling: RopeScaling, base: RopeBase) -> tuple[int, ...]:
    """`scaling.switch_lengths`, checked against its frequencies.

    Raises ValueError for a scaling that has other frequencies at every length, or others than its
    `switch_lengths` say.
    """
    name = type(scaling).__name__
    limits = scaling.switch_lengths(base)
    if limits is None:
        raise ValueError(
            f"{name} has other frequencies at every length, so that train.rope_length "
            '"document" cannot be used with it; set it to "batch", or train a method with one list '
            "per range of lengths, such as LongRope"
        )
    for first, last in zip(_first_lengths(limits), (*limits, None), strict=True):
        if last is None:
            last = LONG * max(first, base.original_max_position_embeddings)
        if not rope_at(scaling, base, first).equals(rope_at(scaling, base, last)):
            raise ValueError(
                f"{name} gives other frequencies at {last} tokens than at {first}, but its "
                "switch_lengths name no length between them"
            )
    return limits


@functools.lru_cache(maxsize=64)
def rotation_by_length(
    scaling: RopeScaling, base: RopeBase, angles: Angles = "exact"
) -> SequenceRotation:
    """The rotation that gives each document the frequencies of its own length.

    One for all lengths where the scaling has no others. Raises ValueError as
    `checked_switch_lengths`.
    """
    limits = checked_switch_lengths(scaling, base)
    rotations = tuple(
        rotation_at(scaling, base, length, angles) for length in _first_lengths(limits)
    )
    if not limits:
        return rotations[0]
    return RotationByLength(jnp.asarray(limits, jnp.int32), rotations)


def _first_lengths(limits: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest length of each range."""
    return (1, *(limit + 1 for limit in limits))
