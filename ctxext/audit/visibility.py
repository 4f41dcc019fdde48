"""The keys that each query sees: how many in each piece, at which rotary distances.

All queries are looked at up to `EXACT` tokens, a sample of them beyond.
"""

import dataclasses

import numpy as np

from ctxext.audit.subject import Runs, View, chunks, runs

EXACT = 4096
"""The longest text of which every query is looked at."""
PAIRS = EXACT * EXACT
"""About how many pairs of a longer text are looked at."""
ENDS = 64
"""Queries at either end that are always looked at."""


def audited_queries(seq_len: int, window: int) -> np.ndarray:
    """Every query up to `EXACT` tokens, else a fixed sample: both ends, and around windows."""
    if seq_len <= EXACT:
        return np.arange(seq_len)
    count = max(2 * ENDS, PAIRS // seq_len)
    rng = np.random.default_rng(0)
    borders = np.arange(window, seq_len, window)[: count // 4]
    chosen = [
        np.arange(ENDS),
        np.arange(seq_len - ENDS, seq_len),
        borders,
        borders - 1,
        rng.integers(0, seq_len, count),
    ]
    return np.unique(np.concatenate(chosen))


@dataclasses.dataclass(frozen=True)
class Row:
    """What one query sees."""

    query: int
    pieces: list[Runs]
    """The visible keys of each piece."""
    twice: Runs
    """Keys in more than one piece."""
    future: Runs
    """Visible keys after the query."""
    distances: list[tuple[float, float] | None]
    """The lowest and the highest rotary distance of each piece; None without keys."""
    largest_share: tuple[float, int]
    """The rotary distance that most keys share, and how many."""
    keys: list[int]
    """How many keys each piece sees."""


@dataclasses.dataclass(frozen=True)
class Visibility:
    """The keys that Q audited queries see in some layers; arrays are [Q], or [Q, P] by piece."""

    view: View
    seq_len: int
    queries: np.ndarray
    keys: np.ndarray
    """How many keys each piece sees, int [Q, P]."""
    first: np.ndarray
    """The first visible key, or the length of the text if there is none."""
    itself: np.ndarray
    """bool: the query sees itself."""
    future: np.ndarray
    """bool: it sees later tokens."""
    twice: np.ndarray
    """bool: it has keys that are in more than one piece."""
    lowest: np.ndarray
    """The lowest rotary distance to earlier keys of each piece, inf without keys, [Q, P]."""
    highest: np.ndarray
    """The highest, -inf without keys."""
    whole: bool
    """All rotary distances are whole numbers."""

    @classmethod
    def of(cls, view: View, seq_len: int, queries: np.ndarray) -> "Visibility":
        """Look at all pairs of these queries with the tokens of the text."""
        all_keys = np.arange(seq_len)
        parts: dict[str, list[np.ndarray]] = {}
        whole = True
        for some in chunks(queries, seq_len):
            seen = view.visible(some, all_keys)
            distances = view.distances(some, all_keys)
            times = np.stack(seen).sum(0, dtype=np.int32)
            any_piece = np.greater(times, 0)
            later = all_keys[None, :] > some[:, None]
            lows, highs = [], []
            for visible, distance in zip(seen, distances, strict=True):
                earlier = visible & ~later
                lows.append(np.where(earlier, distance, np.inf).min(1))
                highs.append(np.where(earlier, distance, -np.inf).max(1))
                whole = whole and not (earlier & (distance != np.floor(distance))).any()
            of_chunk = {
                "keys": np.stack([s.sum(1) for s in seen], 1),
                "first": np.where(any_piece.any(1), any_piece.argmax(1), seq_len),
                "itself": any_piece[np.arange(len(some)), some],
                "future": (any_piece & later).any(1),
                "twice": (times > 1).any(1),
                "lowest": np.stack(lows, 1),
                "highest": np.stack(highs, 1),
            }
            for name, values in of_chunk.items():
                parts.setdefault(name, []).append(values)
        arrays = {name: np.concatenate(values) for name, values in parts.items()}
        return cls(view=view, seq_len=seq_len, queries=queries, whole=whole, **arrays)

    @property
    def reach(self) -> float:
        """The highest rotary distance of all; -inf without keys."""
        return float(self.highest.max())

    def without_start(self) -> np.ndarray:
        """bool [Q]: the first token that the query sees is not one that sees itself alone.

        The first token of every text is such a one in pre-training, and models give it the weight
        that they do not need (an attention sink, arXiv 2309.17453).
        """
        starts = np.unique(self.first[self.first < self.seq_len])
        alone = np.zeros(self.seq_len + 1, bool)
        all_keys = np.arange(self.seq_len)
        for some in chunks(starts, self.seq_len):
            seen = np.any(self.view.visible(some, all_keys), axis=0)
            alone[some] = (seen.sum(1) == 1) & seen[np.arange(len(some)), some]
        return ~alone[self.first]

    def row(self, query: int) -> Row:
        """What one query sees, in full."""
        keys = np.arange(self.seq_len)
        at = np.array([query])
        seen = [piece[0] for piece in self.view.visible(at, keys)]
        distances = [piece[0] for piece in self.view.distances(at, keys)]
        times = np.sum(seen, axis=0)
        used = [d[s] for d, s in zip(distances, seen, strict=True)]
        together = np.concatenate(used)
        share = (0.0, 0)
        if len(together):
            values, counts = np.unique(together, return_counts=True)
            share = float(values[counts.argmax()]), int(counts.max())
        return Row(
            query=query,
            pieces=[runs(piece) for piece in seen],
            twice=runs(times > 1),
            future=runs((times > 0) & (keys > query)),
            distances=[(float(d.min()), float(d.max())) if len(d) else None for d in used],
            largest_share=share,
            keys=[int(piece.sum()) for piece in seen],
        )
