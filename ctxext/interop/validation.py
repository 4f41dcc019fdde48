"""Rules for the values of a config.json or params.json that others wrote."""

from collections.abc import Callable, Mapping
from typing import Any

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is valid, and a description of valid values."""

LARGEST_SIZE = 2**24
"""More is a mistake, and is refused before anything of that size is allocated."""


SMALLEST_EPSILON = 1e-30
"""A smaller one is 0 in float32, and its purpose is not to be."""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e300


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_SIZE


def _is_token_id(value: Any) -> bool:
    return type(value) is int


def _are_token_ids(value: Any) -> bool:
    if isinstance(value, list) and value:
        return all(_is_token_id(item) for item in value)
    return _is_token_id(value)


SIZE: Rule = (_is_size, f"an integer from 1 to {LARGEST_SIZE}")
NUMBER: Rule = (_is_number, "a number of at least 0")
EPSILON: Rule = (
    lambda value: _is_number(value) and SMALLEST_EPSILON <= value < 1,
    "a number between 0 and 1, such as 1e-05",
)
TOKEN_ID: Rule = (_is_token_id, "a token id")
TOKEN_IDS: Rule = (_are_token_ids, "a token id or a list of them")
FLAG: Rule = (lambda value: type(value) is bool, "true or false")


def check(data: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise ValueError naming the first key whose value breaks its rule; null is allowed."""
    for key, value in data.items():
        if value is None or key not in rules:
            continue
        is_valid, description = rules[key]
        if not is_valid(value):
            raise ValueError(f"{key} must be {description}, got {str(value)[:50]!r}")
