"""The checker that pytest applies to ctxext (see addopts): it enforces annotated array shapes."""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def has_shape(hint: Any) -> bool:
    """Whether an annotation contains an array shape."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(hint)))


def checked(function: Callable) -> Callable:
    """`beartype` for functions that annotate a shape; all others stay duck-typed."""
    if any(map(has_shape, function.__annotations__.values())):
        return beartype(function)
    return function
