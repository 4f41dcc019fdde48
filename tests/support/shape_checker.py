"""The checker that pytest puts on ctxext (see addopts): it holds the functions that state array shapes to them."""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray


def states_shapes(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(states_shapes, typing.get_args(hint)))


def checked(function: Callable) -> Callable:
    """`beartype` where an annotation states a shape; plain duck typing stays free elsewhere."""
    return (
        beartype(function)
        if any(map(states_shapes, function.__annotations__.values()))
        else function
    )
