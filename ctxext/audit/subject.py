"""What is audited: attention and frequencies together, over a model, at a length."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ctxext.attention.heads import HeadSet, head_sets
from ctxext.attention.layers import LayerKind
from ctxext.attention.length import pieces_of_any_length
from ctxext.attention.pieces import Attention, Mask, Piece, within
from ctxext.methods import label
from ctxext.rope import Rope, RopeBase, RopeScaling, Unscaled, rope_at

CHUNK = 2**21
"""Pairs of tokens that are looked at together."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One attention method and one scaling of frequencies, over a model, at `seq_len` tokens."""

    attention: Attention
    scaling: RopeScaling
    base: RopeBase
    seq_len: int
    layers: tuple[LayerKind, ...]
    """How each layer attends, from the first to the last."""
    heads: tuple[int, int]
    """Query heads and key-value heads."""

    @property
    def name(self) -> str:
        """The methods as in records, such as "self-extend(group_size=4, neighbor_window=1024)"."""
        parts: list[Attention | RopeScaling] = [self.attention]
        if self.scaling != Unscaled():
            parts.append(self.scaling)
        return label(parts)

    @property
    def window(self) -> int:
        """L, the window of pre-training."""
        return self.base.original_max_position_embeddings

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The terms of the softmax at this length. Raises ValueError for undeclared changes."""
        pieces = pieces_of_any_length(self.attention)
        return self.attention.pieces(self.seq_len) if self.attention.depends_on_length else pieces

    def rope(self, kind: LayerKind) -> tuple[Rope, RopeBase]:
        """The frequencies of layers of this kind at this length, and those of pre-training."""
        rope = rope_at(self.scaling, self.base, self.seq_len)
        if kind.window is None:
            return rope, self.base
        return rope.of_sliding_layers, self.base.of_sliding_layers

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers that there are, in the order of their first layers."""
        return tuple(dict.fromkeys(self.layers))

    def views(self, kind: LayerKind) -> list["View"]:
        """What layers of this kind see, for each set of heads that see the same.

        Raises ValueError for heads to which no piece applies.
        """
        pieces = self.pieces
        sets = head_sets(pieces, *self.heads)
        return [self._view(kind, pieces, heads) for heads in sets]

    def _view(self, kind: LayerKind, pieces: Sequence[Piece], heads: HeadSet) -> "View":
        names = []
        if len(self.kinds) > 1:
            sees = "all tokens" if kind.window is None else f"a window of {kind.window:,}"
            turns = "" if kind.rotates else ", not rotated"
            names.append(f"layers with {sees}{turns}")
        if heads.query_heads is not None:
            names.append(f"heads {heads.query_heads.start}-{heads.query_heads.stop - 1}")
        own = tuple(heads.of_pieces(pieces))
        masks = tuple(within(piece.mask, kind.window) for piece in own)
        numbers = tuple(number + 1 for number in heads.pieces)
        return View(", ".join(names), numbers, own, masks, kind)


@dataclasses.dataclass(frozen=True)
class View:
    """The pieces of a softmax, as some layers evaluate them for some heads."""

    name: str
    """Which layers and heads; empty if all see the same."""
    numbers: tuple[int, ...]
    """The pieces' numbers among those of the method, from 1."""
    pieces: tuple[Piece, ...]
    masks: tuple[Mask, ...]
    """The mask of each piece."""
    kind: LayerKind

    def visible(self, queries: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
        """bool [Q, K] for each piece."""
        shape = (len(queries), len(keys))
        of_pieces = []
        for mask in self.masks:
            seen = mask.visible(queries[:, None], keys[None, :])
            of_pieces.append(np.broadcast_to(np.asarray(seen, bool), shape))
        return of_pieces

    def distances(self, queries: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
        """Rotary distances [Q, K] of each piece: mapped position of the query minus the key's."""
        return [
            np.asarray(piece.query_positions(queries), np.float64)[:, None]
            - np.asarray(piece.key_positions(keys), np.float64)[None, :]
            for piece in self.pieces
        ]


Runs = list[tuple[int, int]]
"""Token indices as runs, (first, last) each."""


def runs(visible: np.ndarray) -> Runs:
    """The runs of True in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], visible, [False]]).astype(np.int8)))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def runs_text(of_row: Runs) -> str:
    """0-3, 12-19."""
    texts = [f"{a:,}" if a == b else f"{a:,}-{b:,}" for a, b in of_row]
    if len(texts) > 4:
        texts = [*texts[:2], "...", texts[-1]]
    return ", ".join(texts) or "none"


def chunks(queries: np.ndarray, seq_len: int) -> Sequence[np.ndarray]:
    """The queries in parts of which all pairs with the keys fit in memory."""
    size = max(1, CHUNK // seq_len)
    return [queries[first : first + size] for first in range(0, len(queries), size)]
