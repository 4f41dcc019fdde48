"""Where the documents of packed rows begin: a method counts tokens and positions from there."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ctxext.attention.layers import LayerMask
from ctxext.attention.pieces import Piece, unchanged
from ctxext.attention.tables import Tables, key_tables, query_tables
from ctxext.rope_by_length import RotationByLength, SequenceRotation


def smallest_in_document(
    values: Int[Any, "#b t"], segment_ids: Int[Array, "b t"] | None
) -> Int[Array, "b t"]:
    """The smallest of `values` among the tokens of each token's document.

    Of token indices or positions that is where the document begins. The tokens may come in any
    order, and a document need not be in one place. segment_ids: None if every row is one document.
    """
    if segment_ids is None:
        smallest = jnp.min(values, axis=1, keepdims=True)
        return jnp.broadcast_to(smallest, values.shape)
    places = jnp.broadcast_to(jnp.arange(segment_ids.shape[1]), segment_ids.shape)
    values = jnp.broadcast_to(values, segment_ids.shape)
    ids, sorted_values, sorted_places = jax.lax.sort((segment_ids, values, places), num_keys=2)
    is_other = ids[:, 1:] != ids[:, :-1]
    is_first = jnp.pad(is_other, ((0, 0), (1, 0)), constant_values=True)
    first = jax.lax.cummax(jnp.where(is_first, places, 0), axis=1)
    smallest = jnp.take_along_axis(sorted_values, first, axis=1)
    _, in_place = jax.lax.sort((sorted_places, smallest), num_keys=1)
    return in_place


def document_lengths(
    positions: Int[Array, "b t"], segment_ids: Int[Array, "b t"] | None
) -> Int[Array, "b t"]:
    """How far the positions of each token's document reach, from its first to its last, in tokens.

    That is its number of tokens, unless positions were skipped. The order of tokens is free.
    """
    largest = -smallest_in_document(-positions, segment_ids)
    return largest - smallest_in_document(positions, segment_ids) + 1


def first_tokens(
    masks: Sequence[LayerMask], index: Int[Any, "#b t"], segment_ids: Int[Array, "b t"] | None
) -> Int[Array, "b t"] | None:
    """The token index at which each token's document begins; None if no mask needs it.

    index: the token indices, in the order of `segment_ids`.
    """
    if segment_ids is None or all(mask.by_distance for mask in masks):
        return None
    return smallest_in_document(index, segment_ids)


def rotary_tables(
    pieces: Sequence[Piece],
    rotation: SequenceRotation,
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"] | None,
) -> tuple[list[Tables], list[Tables]]:
    """The tables of queries and those of keys, of each piece.

    In a document that begins at position b, p is rotated at b + map(p - b): distances are those of
    the document alone, and a map that changes nothing is exact. Where leading positions rotate
    differently, it is map(p - b), because they are those of the document.
    """
    of_tokens: Any = rotation
    if isinstance(rotation, RotationByLength):
        of_tokens = rotation.of_lengths(document_lengths(positions, segment_ids))
    of_windows = of_tokens.sliding
    if of_tokens.leading is not None or (of_windows is not None and of_windows.leading is not None):
        positions = positions - smallest_in_document(positions, segment_ids)
    begins = _begins(pieces, positions, segment_ids)
    queries = [query_tables(piece, of_tokens, positions, begins) for piece in pieces]
    keys = [key_tables(piece, of_tokens, positions, begins) for piece in pieces]
    return queries, keys


def mapped_positions(
    pieces: Sequence[Piece], positions: Int[Array, "b t"], segment_ids: Int[Array, "b t"] | None
) -> tuple[list[Array], list[Array]]:
    """The positions at which queries rotate and those of keys, of each piece."""
    begins = _begins(pieces, positions, segment_ids)
    queries = [begins + piece.query_positions(positions - begins) for piece in pieces]
    keys = [begins + piece.key_positions(positions - begins) for piece in pieces]
    return queries, keys


def _begins(
    pieces: Sequence[Piece], positions: Int[Array, "b t"], segment_ids: Int[Array, "b t"] | None
) -> Any:
    """The position of the first token of each token's document; 0 if no piece needs it."""
    plain = all(
        piece.query_positions is unchanged
        and piece.key_positions is unchanged
        and piece.query_scale is None
        for piece in pieces
    )
    return 0 if plain else smallest_in_document(positions, segment_ids)
