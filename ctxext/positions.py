"""The second seam: which positions the tokens of a training batch get."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np


class Placement(NamedTuple):
    """The positions of a row, int32 [T], and which tokens of its text it has, integers [T].

    Both increase strictly. indices None: the text is the row.
    """

    positions: np.ndarray
    indices: np.ndarray | None = None


class Positions(abc.ABC):
    """Training-time positions. Subclasses are frozen dataclasses and final.

    They are drawn on the host with the batch, by the generator of that seed, step and row. Most
    methods only `sample`; one that follows the text or leaves some of it out also has `place`, and
    in the second case `text_tokens`.
    """

    type_tag: ClassVar[str] = "positions/"

    @abc.abstractmethod
    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        """Position ids, int32 [B, T], strictly increasing along a row, whatever its text."""

    def place(
        self, rng: np.random.Generator, seq_len: int, text: Callable[[], np.ndarray]
    ) -> Placement:
        """The positions of one row of `seq_len` tokens, and which tokens of its text it has.

        text: reads the `text_tokens` ids of the row's text. Every process calls this for every
        row, but reads only the rows of its own devices and those whose text a method asks for.
        """
        return Placement(self.sample(rng, (1, seq_len))[0])

    def text_tokens(self, seq_len: int) -> int:
        """Tokens of the text that a row of `seq_len` tokens is taken from."""
        return seq_len


@dataclasses.dataclass(frozen=True)
class Contiguous(Positions):
    """The position of a token is its index in the row."""

    paper: ClassVar[str] = ""

    def sample(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        return np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)


def check_placement(method: Positions, placement: Placement, seq_len: int) -> None:
    """Raise ValueError, naming the class, unless a row's positions and indices are as promised."""
    name = type(method).__name__
    tokens = method.text_tokens(seq_len)
    for what, numbers, limit in (
        ("positions", placement.positions, 2**31),
        ("indices", placement.indices, tokens),
    ):
        if numbers is None:
            continue
        if numbers.shape != (seq_len,) or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(
                f"{name} gives {what} of shape {numbers.shape} and type {numbers.dtype} for a row "
                f"of {seq_len} tokens; return one integer for each token"
            )
        if numbers[0] < 0 or numbers[-1] >= limit or (np.diff(numbers) <= 0).any():
            raise ValueError(
                f"{name} gives {what} that do not increase from token to token within 0 .. "
                f"{limit - 1}; masks and documents of packed rows rely on it"
            )


def check_reach(method: Any, length: int | None = None) -> None:
    """Raise ValueError unless the positions of `method` fit 32 bits and rows of `length` tokens."""
    reach = method.max_position_embeddings
    name = type(method).__name__
    if not 1 <= reach <= 2**31:
        raise ValueError(
            f"{name}: max_position_embeddings must be from 1 to {2**31} (32-bit positions), "
            f"got {reach}"
        )
    if length is not None and reach < length:
        raise ValueError(
            f"{name} reaches {reach} positions, fewer than the {length} tokens of a row; raise "
            f"positions.max_position_embeddings to at least {length}"
        )
