"""Attention by the definition of pieces, in float64 numpy, and a method that uses all of them."""

import dataclasses
from typing import Any

import numpy as np

from ctxext.attention.maps import Divided
from ctxext.attention.pieces import Attention, Band, Heads, Piece, Stretch
from ctxext.rope import Rope, RopeBase, inverse_frequencies


def rotate(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray) -> np.ndarray:
    """Heads [T, N, H] turned at positions that may be fractions."""
    half = x.shape[-1] // 2
    pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None, None] * inv_freq)
    return np.concatenate([pairs.real, pairs.imag], -1)


def by_definition(
    pieces: tuple[Piece, ...],
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    theta: float = 1e4,
    positions: np.ndarray | None = None,
    attention: Attention | None = None,
) -> np.ndarray:
    """softmax(scores) v of one document, [T, N, H]; fails if two pieces claim the same pair.

    positions: those of the tokens, from 0 on; by default their indices. attention: the method,
    where pieces are stretched.
    """
    T, N, H = q.shape
    index = np.arange(T)
    positions = index if positions is None else positions
    inv_freq = inverse_frequencies(H, theta)
    group = N // k.shape[1]
    scores = np.full((N, T, T), -np.inf)
    for piece in pieces:
        query_at = np.asarray(piece.query_positions(positions), np.float64)
        key_at = np.asarray(piece.key_positions(positions), np.float64)
        queries = rotate(q, query_at, inv_freq)
        keys = rotate(k, key_at, inv_freq)
        if piece.stretched:
            assert attention is not None
            base = RopeBase(H, theta, T)
            stretch = attention.stretch(Rope(inv_freq), base, T)
            assert stretch is not None
            start = rotate(q, np.full(T, stretch.first), inv_freq)
            queries = rotate(start, query_at - stretch.first, stretch.inv_freq)
            keys = rotate(k, key_at, stretch.inv_freq)
        if piece.query_scale is not None:
            queries = queries * np.asarray(piece.query_scale(positions))[:, None, None]
        of_piece = np.einsum("tnh,snh->nts", queries, keys.repeat(group, 1)) / H**0.5
        if piece.bias is not None:
            slopes = np.asarray(piece.bias(N))[:, None, None]
            of_piece = of_piece - slopes * (query_at[:, None] - key_at[None])
        speaks = np.isin(np.arange(N), piece.heads.of(N))[:, None, None]
        visible = speaks & piece.mask.visible(index[:, None], index[None])
        assert np.isneginf(scores[visible]).all(), "pieces overlap"
        scores = np.where(visible, of_piece, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nts,snh->tnh", weights, v.repeat(group, 1))


@dataclasses.dataclass(frozen=True)
class Coarse:
    """p // size + offset."""

    size: Any
    offset: int = 0

    def __call__(self, positions: Any) -> Any:
        return positions // self.size + self.offset


@dataclasses.dataclass(frozen=True)
class Growing:
    """1 + p / (2 l)."""

    seq_len: Any

    def __call__(self, positions: Any) -> Any:
        return 1 + positions / (2 * self.seq_len)


@dataclasses.dataclass(frozen=True)
class Even:
    """The slopes 1/8, 2/8, ..."""

    def __call__(self, num_heads: int) -> list[float]:
        return [(n + 1) / 8 for n in range(num_heads)]


@dataclasses.dataclass(frozen=True)
class Everything(Attention):
    """Made up: fractions, bias, scale, heads that cut a group, and maps that follow the length."""

    depends_on_length = True
    window: int = 7

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        first, rest = Heads(0, 0.25), Heads(0.25, 1)
        size = -(-seq_len // 16)
        scale = Growing(seq_len)
        return (
            Piece(Band(), Divided(5, 3), Divided(0, 3), bias=Even(), heads=first),
            Piece(Band(0, self.window), query_scale=scale, heads=rest),
            Piece(
                Band(self.window),
                Coarse(size, self.window),
                Coarse(size),
                query_scale=scale,
                bias=Even(),
                heads=rest,
            ),
        )


@dataclasses.dataclass(frozen=True)
class AtLength(Attention):
    """The pieces of a method at one length, whatever length is asked for."""

    attention: Attention
    length: int

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        return self.attention.pieces(self.length)

    def stretch(self, rope: Rope, base: RopeBase, seq_len: int) -> Stretch | None:
        return self.attention.stretch(rope, base, self.length)
