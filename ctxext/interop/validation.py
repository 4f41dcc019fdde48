"""What the numbers of a foreign config.json or params.json may be, so that a damaged one is refused by its key."""

from collections.abc import Callable, Mapping
from typing import Any

Rule = tuple[Callable[[Any], bool], str]  # whether a value is one, and what it should have been

LARGEST = 2**24  # of a size; more is a mistake, and is found before anything of that size is made


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e300


SIZE: Rule = (lambda x: type(x) is int and 1 <= x <= LARGEST, f"an integer from 1 to {LARGEST}")
NUMBER: Rule = (_number, "a number of at least 0")
EPSILON: Rule = (lambda x: _number(x) and 0 < x < 1, "a number between 0 and 1, such as 1e-05")
FLAG: Rule = (lambda x: type(x) is bool, "true or false")


def check(data: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raises ValueError naming the first key of `data` whose value breaks its rule; null is no value."""
    for key, value in data.items():
        if value is not None and key in rules and not rules[key][0](value):
            raise ValueError(f"{key} must be {rules[key][1]}, got {str(value)[:50]!r}")
