"""Rules for the values of a config.json or params.json that others wrote."""

from collections.abc import Callable, Mapping
from typing import Any

from ctxext.model.config import LARGEST_SIZE

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is valid, and a description of valid values."""


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
TEXT: Rule = (lambda value: type(value) is str, "text")
COUNT: Rule = (
    lambda value: type(value) is int and 0 <= value < 2**53,
    "a whole number of at least 0",
)
FINITE: Rule = (
    lambda value: type(value) in (int, float) and abs(value) < 1e300,
    "a finite number",
)
OBJECT: Rule = (lambda value: type(value) is dict, "an object")
ANYTHING: Rule = (lambda value: True, "anything")


Shape = Rule | Mapping[str, "Shape"] | list["Shape"]
"""A rule; or an object with the shapes of some keys, "*" for all others; or a list of one shape."""


def optional(rule: Rule) -> Rule:
    """The rule for a value that may be null."""
    is_valid, description = rule
    return (lambda value: value is None or is_valid(value), f"{description} or null")


def check_shape(value: Any, shape: Shape, name: str) -> None:
    """Raise ValueError that names the first part of a JSON value that is not as its shape says.

    An object may lack keys of its shape, and have further ones.
    """
    if isinstance(shape, tuple):
        is_valid, description = shape
        if not is_valid(value):
            raise ValueError(f"{name} must be {description}, got {str(value)[:50]!r}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, got {str(value)[:50]!r}")
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{name}[{number}]")
    else:
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object, got {str(value)[:50]!r}")
        for key, item in value.items():
            check_shape(item, shape.get(key, shape.get("*", ANYTHING)), f"{name}.{key:.50}")


def check(data: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise ValueError naming the first key whose value breaks its rule; null is allowed."""
    for key, value in data.items():
        if value is None or key not in rules:
            continue
        is_valid, description = rules[key]
        if not is_valid(value):
            raise ValueError(f"{key} must be {description}, got {str(value)[:50]!r}")
