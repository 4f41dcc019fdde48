"""LongRecipe's positions: the sentences of a row move apart (arXiv 2409.00509)."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from ctxext.positions import Placement, Positions, check_reach


@dataclasses.dataclass(frozen=True)
class LongRecipe(Positions):
    """The n sentences of a row of T tokens, at random places of 0 .. L' - 1 in order (2409.00509).

    Of a line of n + L' - T places, n are drawn, every set as likely as any other; a sentence takes
    as many positions as it has tokens, a place that is left free takes one, and the first sentence
    begins at 0. A sentence ends with one of `separators`; what has none is one sentence. In the
    released training the first r ~ U{1 .. floor((T + 1) / 2)} tokens then get 0 .. r - 1, here with
    `contiguous_beginning`. The paper's choice of tokens, which needs another model, is left out:
    the text stays contiguous. L' = `max_position_embeddings`. Raises ValueError if T exceeds it.
    """

    paper: ClassVar[str] = "2409.00509"
    max_position_embeddings: int
    separators: tuple[int, ...] = dataclasses.field(metadata={"example": (13, 198, 30, 0, 627)})
    """Ids of the tokens that end a sentence; in Llama 3: 13 198 30 0 627 (. newline ? ! and .
    newline)."""
    contiguous_beginning: bool = True
    """Move the first tokens back to where they are in the row, up to half of them."""

    def __post_init__(self) -> None:
        check_reach(self)
        if not self.separators:
            raise ValueError(
                "positions.separators is empty: give the ids of the tokens that end a sentence"
            )

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        raise ValueError("LongRecipe moves sentences, so it needs the tokens of a row: call place")

    def place(
        self, rng: np.random.Generator, seq_len: int, text: Callable[[], np.ndarray]
    ) -> Placement:
        check_reach(self, seq_len)
        is_last = np.isin(text(), self.separators)
        is_last[-1] = True
        lengths = np.diff(np.flatnonzero(is_last), prepend=-1)
        n = len(lengths)
        free = self.max_position_embeddings - seq_len
        places = np.sort(rng.choice(n + free, n, replace=False, shuffle=False))
        positions = place_sentences(lengths, places)
        if self.contiguous_beginning:
            beginning = rng.integers(1, (seq_len + 1) // 2 + 1)
            positions[:beginning] = np.arange(beginning)
        return Placement(positions.astype(np.int32))


def place_sentences(lengths: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Positions of tokens, int64 [T]: sentences of `lengths` tokens at `places`, which increase.

    The first begins at 0, whatever its place.
    """
    moved = np.concatenate([[0], places[1:]]) - np.arange(len(lengths))
    return np.arange(lengths.sum()) + np.repeat(moved, lengths)
