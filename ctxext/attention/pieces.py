"""The third seam: who sees whom, at which rotary position.

A method is a tuple of pieces, the terms of one softmax. Masks read token indices, rotations read
positions, so that packing, padding and position skipping never fool a mask. Both count from the
beginning of the document, so that a document in a packed row is read as it is alone.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from ctxext.rope import Rope, RopeBase

PositionMap = Callable[[Any], Any]
"""Position ids in, rotary positions out, elementwise; both count from the document's beginning.

Hashable: a function, or a frozen dataclass with __call__. Positions may be fractions, as floating
point numbers; `maps.Divided` is exact at any position.
"""
QueryScale = Callable[[Any], Any]
"""Position ids in, counted from the document's beginning; multipliers of the queries out."""
Slopes = Callable[[int], Sequence[float]]
"""The number of query heads in; for each of them, what a unit of distance takes from a score."""
ScaledLayers = Literal["all", "without-rotation"]
"""The layers in which queries are scaled."""


class Mask(abc.ABC):
    """A predicate on token indices (query, key). Subclasses are frozen dataclasses.

    The indices count from the beginning of the document.
    """

    by_distance: ClassVar[bool] = False
    """It depends on query - key only, so that it is the same wherever a document begins. Of any
    other mask, kernels compute all pairs of a document in a packed row."""
    causal: ClassVar[bool] = True
    """No query sees a later token. Other masks are for training that leaks, as published code
    does; only the kernel `dense` evaluates them."""

    @abc.abstractmethod
    def visible(self, query: Any, key: Any) -> Any:
        """Elementwise and broadcasting; numpy or jax integers in, booleans out."""

    @abc.abstractmethod
    def block(self, query: range, key: range) -> tuple[bool, bool]:
        """(whether a pair of this block may be visible, whether all are), without looking at each.

        (True, False) is always right, and makes kernels compute the block pair by pair.
        """


@dataclasses.dataclass(frozen=True)
class Band(Mask):
    """Visible at distances low <= query - key < high; no upper bound if it is None.

    Raises ValueError for a negative `low`, at which queries would see later tokens.
    """

    by_distance: ClassVar[bool] = True
    low: int = 0
    high: int | None = None

    def __post_init__(self) -> None:
        if self.low < 0:
            raise ValueError(
                f"a band begins at distance 0 or farther, got {self.low}; a mask that shows later "
                "tokens is a subclass of Mask with causal = False"
            )

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

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.mask.causal

    def visible(self, query: Any, key: Any) -> Any:
        return self.mask.visible(query, key) & (query - key < self.window)

    def block(self, query: range, key: range) -> tuple[bool, bool]:
        any_visible, all_visible = self.mask.block(query, key)
        any_near = query[0] - key[-1] < self.window
        all_near = query[-1] - key[0] < self.window
        # Both may hold somewhere without a pair for which they do: such a block is only visited.
        return any_visible and any_near, all_visible and all_near


def within(mask: Mask, window: int | None) -> Mask:
    """The mask, cut to distances below `window` unless that is None."""
    if window is None:
        return mask
    if isinstance(mask, Band):
        return Band(mask.low, window if mask.high is None else min(mask.high, window))
    return Within(mask, window)


def unchanged(positions: Any) -> Any:
    """The identity: rotate at the position itself."""
    return positions


@dataclasses.dataclass(frozen=True)
class Heads:
    """Some of the query heads: from the share `first` of their number to before the share `stop`.

    Shares are rounded down to whole heads. Raises ValueError unless 0 <= first < stop <= 1.
    """

    first: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.stop <= 1:
            raise ValueError(
                f"heads are shares with 0 <= first < stop <= 1, got {self.first} and {self.stop}"
            )

    @property
    def share(self) -> float:
        """Their share of all heads."""
        return self.stop - self.first

    def of(self, num_heads: int) -> range:
        """Their numbers in a model with this many query heads."""
        first, stop = (math.floor(share * num_heads + 1e-6) for share in (self.first, self.stop))
        return range(first, stop)


ALL_HEADS = Heads()


@dataclasses.dataclass(frozen=True)
class Piece:
    """One term of a softmax: the pairs in `mask`, rotated at mapped positions.

    For each head, the masks of a method's pieces are disjoint, and every token sees itself in one
    of them.
    """

    mask: Mask
    """The pairs of tokens, by their indices."""
    query_positions: PositionMap = unchanged
    """Where queries rotate."""
    key_positions: PositionMap = unchanged
    """Where keys rotate."""
    query_scale: QueryScale | None = None
    """Multiplies the queries after their rotation; None: by 1."""
    scaled_layers: ScaledLayers = "all"
    """The layers in which `query_scale` applies."""
    unscaled_layers: int = 0
    """How many of the first layers of a model leave queries as they are all the same."""
    bias: Slopes | None = None
    """One slope per head: -slope times the distance between mapped positions is added to scores,
    as well as the bias of the model; None: nothing."""
    heads: Heads = ALL_HEADS
    """The query heads that it applies to."""
    stretched: bool = False
    """Distances turn pairs as `Attention.stretch` says, not by the frequencies alone."""

    def __post_init__(self) -> None:
        """Raise ValueError for other `scaled_layers`."""
        known = get_args(ScaledLayers)
        if self.scaled_layers not in known:
            raise ValueError(
                f"layers {self.scaled_layers!r} are not known; queries are scaled in one of "
                f"{', '.join(known)}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Stretch:
    """Distance D turns pair i by `first` f_i + (D - `first`) f'_i, f_i being the frequencies."""

    first: int
    inv_freq: np.ndarray
    """f', float64 [H/2], radians per token."""

    def angles(self, inv_freq: np.ndarray, distance: float) -> np.ndarray:
        """By how much a distance from `first` on turns each pair, radians. inv_freq: f."""
        return self.first * inv_freq + (distance - self.first) * self.inv_freq


class Attention(abc.ABC):
    """Who sees whom. Subclasses are frozen, hashable dataclasses and final."""

    type_tag: ClassVar[str] = "attention/"
    depends_on_length: ClassVar[bool] = False
    """True where position maps, scales or slopes of `pieces` change with `seq_len`."""

    @abc.abstractmethod
    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        """The terms of the softmax for a context of `seq_len` tokens, with disjoint masks.

        Masks and heads are the same at every length, because kernels are built from them. For
        methods that declare `depends_on_length`, `seq_len` may be a traced array, so that another
        length compiles nothing; for the others it must not matter.
        """

    def stretch(self, rope: Rope, base: RopeBase, seq_len: int) -> Stretch | None:
        """How pieces that are `stretched` turn pairs over a scaling with this `rope`."""
        return None

    @property
    def after_training(self) -> "Attention":
        """The attention used after training with this one: in evaluations, exports and generation.

        The same, unless it only makes training cheaper.
        """
        return self


@dataclasses.dataclass(frozen=True)
class Causal(Attention):
    """Every earlier token and itself, at its own position."""

    aliases: ClassVar[tuple[str, ...]] = ("full",)
    paper: ClassVar[str] = ""

    def pieces(self, seq_len: Any) -> tuple[Piece, ...]:
        return (Piece(Band()),)
