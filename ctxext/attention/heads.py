"""Pieces that apply to some heads only: attention is evaluated for each set of heads by itself.

Shapes: N query heads, K key-value heads. The heads are the second to last axis of an array unless
`axis` says otherwise.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ctxext.attention.pieces import Piece


@dataclasses.dataclass(frozen=True)
class HeadSet:
    """Query heads to which the same pieces apply."""

    pieces: tuple[int, ...]
    """The numbers of these pieces among those of the method, from 0."""
    query_heads: slice | None = None
    """None: all of them."""
    key_heads: slice | tuple[int, ...] | None = None
    """The key-value heads that they read; repeated as often as needed where a set cuts a group of
    query heads. None: all of them."""

    def of_pieces(self, items: Sequence[Any]) -> list[Any]:
        """The items of these pieces, from a list with one item per piece of the method."""
        return [items[number] for number in self.pieces]

    def queries(self, x: Array, axis: int = -2) -> Array:
        """The part of an array with N query heads that belongs to these."""
        return _taken(x, self.query_heads, axis)

    def keys(self, x: Array, axis: int = -2) -> Array:
        """The part of an array with K key-value heads that these query heads read."""
        if isinstance(self.key_heads, tuple):
            return jnp.take(x, np.array(self.key_heads), axis)
        return _taken(x, self.key_heads, axis)


def _taken(x: Array, heads: slice | None, axis: int) -> Array:
    if heads is None:
        return x
    return x[(*[slice(None)] * (axis % x.ndim), heads)]


def head_sets(pieces: Sequence[Piece], num_query: int, num_key: int) -> list[HeadSet]:
    """The sets of heads, in order; a single one without slices where all pieces apply to all heads.

    Raises ValueError for a head to which no piece applies.
    """
    numbers = tuple(range(len(pieces)))
    of_pieces = [piece.heads.of(num_query) for piece in pieces]
    everything = range(num_query)
    if all(heads == everything for heads in of_pieces):
        return [HeadSet(numbers)]
    ends = {end for heads in of_pieces for end in (heads.start, heads.stop)}
    sets = []
    for first, stop in itertools.pairwise(sorted({0, num_query, *ends})):
        applying = tuple(number for number in numbers if first in of_pieces[number])
        if not applying:
            raise ValueError(f"no piece applies to query heads {first} to {stop - 1}")
        key_heads = _key_heads(range(first, stop), num_query // num_key)
        sets.append(HeadSet(applying, slice(first, stop), key_heads))
    return sets


def _key_heads(query_heads: range, group: int) -> slice | tuple[int, ...]:
    """The key-value heads of some query heads, of which `group` share one."""
    first = query_heads[0] // group
    last = query_heads[-1] // group
    has_whole_groups = query_heads.start % group == 0 and query_heads.stop % group == 0
    if first == last or has_whole_groups:
        return slice(first, last + 1)
    return tuple(head // group for head in query_heads)


def over_heads(
    pieces: Sequence[Piece],
    num_query: int,
    num_key: int,
    attend: Callable[[HeadSet], Array],
) -> Array:
    """The outputs [..., N, H] of attention, evaluated for each set of heads."""
    outputs = [attend(heads) for heads in head_sets(pieces, num_query, num_key)]
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -2)
