"""The facts of a call that decide which kernels can do it."""

import dataclasses
from typing import Any

from ctxext.attention.bias import has_bias
from ctxext.attention.heads import head_sets
from ctxext.attention.layers import Kind, LayerMask, Layers
from ctxext.attention.length import pieces_of_any_length
from ctxext.attention.pieces import Attention


@dataclasses.dataclass(frozen=True)
class Request:
    """One call for attention of sequences with themselves."""

    masks: tuple[LayerMask, ...]
    """One mask per piece of the method."""
    platform: str
    """Where it runs: "cpu", "gpu", "cuda" or "tpu"."""
    seq_len: int
    dtype: Any
    packed: bool
    """Rows hold several documents, whose tokens must not see each other."""
    cut: bool = False
    """Every sequence is cut over several devices (mesh.seq)."""
    bias: bool = False
    """Something is added to the scores, as ALiBi does."""


def requests_of(
    attention: Attention,
    layers: Layers,
    kind: Kind,
    num_heads: tuple[int, int],
    *,
    platform: str,
    seq_len: int,
    dtype: Any,
    packed: bool,
    cut: bool = False,
) -> list[Request]:
    """The calls of a layer: one for each set of heads to which the same pieces of a method apply.

    num_heads: query heads and key-value heads.
    """
    pieces = pieces_of_any_length(attention)
    masks = layers.masks(pieces, kind)
    return [
        Request(
            masks=tuple(heads.of_pieces(masks)),
            platform=platform,
            seq_len=seq_len,
            dtype=dtype,
            packed=packed,
            cut=cut,
            bias=has_bias(layers.bias, heads.of_pieces(pieces)),
        )
        for heads in head_sets(pieces, *num_heads)
    ]
