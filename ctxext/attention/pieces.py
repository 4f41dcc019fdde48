"""The third seam: who sees whom, at which rotary position.

A method is a tuple of pieces, the terms of one softmax. Masks read token indices, rotations read
positions, so that packing, padding and position skipping never fool a mask. Both count from the
beginning of the document, so that a document in a packed row is read as it is alone.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

PositionMap = Callable[[Any], Any]
"""Position ids in, rotary positions out, elementwise; both count from the document's beginning.

Hashable: a function, or a frozen dataclass with __call__.
"""


class Mask(abc.ABC):
    """A predicate on token indices (query, key). Subclasses are frozen dataclasses and causal.

    The indices count from the beginning of the document.
    """

    by_distance: ClassVar[bool] = False
    """It depends on query - key only, so that it is the same wherever a document begins. Of any
    other mask, kernels compute all pairs of a document in a packed row."""

    @abc.abstractmethod
    def visible(self, query: Any, key: Any) -> Any:
        """Elementwise and broadcasting; numpy or jax integers in, booleans out."""

    @abc.abstractmethod
    def block(self, query: range, key: range) -> tuple[bool, bool]:
        """(any pair of this block is visible, all pairs are), without looking at every pair."""


@dataclasses.dataclass(frozen=True)
class Band(Mask):
    """Visible at distances low <= query - key < high; no upper bound if it is None; low >= 0."""

    by_distance: ClassVar[bool] = True
    low: int = 0
    high: int | None = None

    def visible(self, query: Any, key: Any) -> Any:
        distance = query - key
        far_enough = distance >= self.low
        return far_enough if self.high is None else far_enough & (distance < self.high)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        nearest = query[0] - key[-1]
        farthest = query[-1] - key[0]
        any_visible = farthest >= self.low and (self.high is None or nearest < self.high)
        all_visible = nearest >= self.low and (self.high is None or farthest < self.high)
        return any_visible, all_visible


@dataclasses.dataclass(frozen=True)
class Within(Mask):
    """The pairs of another mask at distances below `window`: a layer with a sliding window."""

    mask: Mask
    window: int

    @property
    def by_distance(self) -> bool:  # type: ignore[override]
        return self.mask.by_distance

    def visible(self, query: Any, key: Any) -> Any:
        return self.mask.visible(query, key) & (query - key < self.window)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        any_visible, all_visible = self.mask.block(query, key)
        any_near, all_near = Band(0, self.window).block(query, key)
        # Both may be visible somewhere without a pair that is: such a block is only visited.
        return any_visible and any_near, all_visible and all_near


def within(mask: Mask, window: int | None) -> Mask:
    """The mask, cut to the distances 0 .. window - 1 unless `window` is None."""
    if window is None:
        return mask
    if isinstance(mask, Band):
        return Band(mask.low, window if mask.high is None else min(mask.high, window))
    return Within(mask, window)


def unchanged(positions: Any) -> Any:
    """The identity: rotate at the position itself."""
    return positions


@dataclasses.dataclass(frozen=True)
class Piece:
    """One term of a softmax: the pairs in `mask`, rotated at mapped positions.

    The masks of a method's pieces are disjoint, and every token sees itself in one of them.
    """

    mask: Mask
    query_positions: PositionMap = unchanged
    key_positions: PositionMap = unchanged


class Attention(abc.ABC):
    """Who sees whom. Subclasses are frozen, hashable dataclasses and final."""

    type_tag: ClassVar[str] = "attention/"

    @abc.abstractmethod
    def pieces(self) -> tuple[Piece, ...]:
        """The terms of the softmax, with disjoint masks."""


@dataclasses.dataclass(frozen=True)
class Causal(Attention):
    """Every earlier token and itself, at its own position."""

    aliases: ClassVar[tuple[str, ...]] = ("full",)
    paper: ClassVar[str] = ""

    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(Band()),)
