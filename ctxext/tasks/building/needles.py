"""Needles: keys with values, written into a haystack and asked for by repeating their beginning."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ctxext.tasks.base import TaskContext


class Needle(NamedTuple):
    """A key and its value as token ids `newline stem value end newline`.

    A base model completes its question without any instruction: `newline asked`, or `newline stem`,
    its own beginning, where nothing else is asked.
    """

    key: str
    value: str
    newline: list[int]
    stem: list[int]
    value_ids: list[int]
    asked: list[int] = []
    end: list[int] = []

    @property
    def question(self) -> list[int]:
        """The ids that the prompt ends with."""
        return self.newline + (self.asked or self.stem)

    @property
    def answered(self) -> list[int]:
        """The question with its answer, as it is trained."""
        return self.question + self.value_ids + self.end + self.newline

    @property
    def line(self) -> list[int]:
        """The needle without its last newline, for a text in which every line is a needle."""
        return self.newline + self.stem + self.value_ids + self.end

    @property
    def ids(self) -> list[int]:
        """The needle as it is inserted into running text."""
        return self.line + self.newline


def make_needle(
    context: TaskContext, key: str, value: str, *, stem: str, before_value: str = ""
) -> Needle:
    """The needle `stem value`; before_value: a space, unless stem and value join directly."""
    value_ids = context.encode(before_value + value)
    return Needle(key, value, context.newline, context.encode(stem), value_ids)


def max_digit_needles(keys: Sequence[str], digits: int) -> int:
    """How many needles with different keys and different values of `digits` digits there are."""
    return min(len(keys), 9 * 10 ** (digits - 1))


def draw_digit_needles(
    context: TaskContext,
    count: int,
    *,
    keys: Sequence[str],
    make: Callable[[str, str], Needle],
    digits: int,
) -> list[Needle]:
    """`count` needles with different keys and values; values have `digits` digits, the first not 0.

    make: the needle of a key and a value.
    Raises ValueError if there are not that many keys or values.
    """
    max_count = max_digit_needles(keys, digits)
    if not 1 <= count <= max_count:
        raise ValueError(
            f"{count} records do not fit {len(keys)} names and {digits} digits: ask for 1 to "
            f"{max_count}"
        )
    values: dict[str, None] = {}
    while len(values) < count:
        values[str(context.rng.integers(10 ** (digits - 1), 10**digits))] = None
    chosen = [keys[int(i)] for i in context.rng.permutation(len(keys))[:count]]
    return [make(key, value) for key, value in zip(chosen, values, strict=True)]
