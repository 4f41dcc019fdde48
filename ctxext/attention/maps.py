"""Position maps and query scales that several methods use, for numpy arrays and jax arrays."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class At:
    """The same position for every token."""

    position: int

    def __call__(self, positions: Any) -> Any:
        return 0 * positions + self.position


@dataclasses.dataclass(frozen=True)
class Grouped:
    """p // size + offset, in whole positions."""

    size: Any
    offset: int = 0

    def __call__(self, positions: Any) -> Any:
        return positions // self.size + self.offset


@dataclasses.dataclass(frozen=True)
class Shifted:
    """p + offset."""

    offset: int

    def __call__(self, positions: Any) -> Any:
        return positions + self.offset


@dataclasses.dataclass(frozen=True)
class Modulo:
    """p mod size + offset, at most `highest`."""

    size: int
    offset: int = 0
    highest: int | None = None

    def __call__(self, positions: Any) -> Any:
        mapped = positions % self.size + self.offset
        return mapped if self.highest is None else mapped.clip(max=self.highest)


@dataclasses.dataclass(frozen=True)
class AtMost:
    """min(p, highest)."""

    highest: int

    def __call__(self, positions: Any) -> Any:
        return positions.clip(max=self.highest)


@dataclasses.dataclass(frozen=True)
class Divided:
    """(p + offset) / divisor, a fraction."""

    offset: int
    divisor: int

    def __call__(self, positions: Any) -> Any:
        return (positions + self.offset) / self.divisor

    def whole_and_part(self, positions: Any) -> tuple[Any, Any]:
        """The whole part of the mapped position, and the rest of it, exact at any position."""
        numerator = positions + self.offset
        return numerator // self.divisor, numerator % self.divisor / self.divisor


@dataclasses.dataclass(frozen=True)
class LogLength:
    """max(1, ln(p + 1) / ln L): the entropy of attention kept over the length (kexue.fm/8823).

    Raises ValueError for a length that has no logarithm to divide by.
    """

    training_length: int

    def __post_init__(self) -> None:
        if self.training_length < 2:
            raise ValueError(
                f"training_length must be at least 2 tokens, got {self.training_length}"
            )

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        return (xp.log(positions + 1.0) / xp.log(xp.float32(self.training_length))).clip(min=1)


@dataclasses.dataclass(frozen=True)
class LogSteps:
    """1 + beta ln(1 + (p + ahead) // length), which grows at every multiple of the length.

    Raises ValueError for a beta that is negative or not finite, and for a length below 1.
    """

    beta: float
    length: int
    ahead: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf or self.length < 1:
            raise ValueError(
                f"need a finite factor from 0 on and a length of at least 1, got {self.beta} and "
                f"{self.length}"
            )

    def __call__(self, positions: Any) -> Any:
        xp = positions.__array_namespace__()
        return 1 + self.beta * xp.log(1.0 + (positions + self.ahead) // self.length)
