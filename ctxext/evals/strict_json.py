"""Frozen dataclasses as JSON and back, with every type checked."""

import contextlib
import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Plain JSON; fields that have their default value are left out."""
    if dataclasses.is_dataclass(value):
        values = {f.name: (f, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {
            name: encode(part)
            for name, (f, part) in values.items()
            if part != (f.default if f.default_factory is dataclasses.MISSING else {})
        }
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    return value


def decode(kind: type[T], value: Any, name: str) -> T:
    """The inverse of `encode`. Raises ValueError that names the field that is wrong."""
    return _decoder(kind)(value, name)


Decoder = Callable[[Any, str], Any]
"""(JSON value, its name for messages) -> the typed value; raises ValueError."""

SCALARS: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
}
LARGEST = {int: 2**53, float: 1e300}
"""Numbers are smaller; infinity and NaN are not numbers."""


@functools.cache
def _decoder(hint: Any) -> Decoder:
    """The strict decoder of a type that records use."""
    if dataclasses.is_dataclass(hint):
        return _dataclass_decoder(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        return _tuple_decoder(args[0])
    if origin in (Union, types.UnionType):
        return _union_decoder(args)
    if origin is dict:
        return _check(lambda value: isinstance(value, dict), "an object")
    if origin is Literal:
        return _check(lambda value: value in args, f"one of {', '.join(map(str, args))}")
    allowed = SCALARS[hint]
    is_bool = hint is bool
    largest = LARGEST.get(hint)
    return _check(
        lambda value: (
            isinstance(value, allowed)
            and isinstance(value, bool) == is_bool
            and (largest is None or -largest < value < largest)
        ),
        f"of type {hint.__name__}" + (" of a usual size" if largest else ""),
    )


def _check(accepts: Callable[[Any], bool], expected: str) -> Decoder:
    def decode(value: Any, name: str) -> Any:
        if not accepts(value):
            raise ValueError(f"{name} is {value!r:.50}, not {expected}")
        return value

    return decode


def _dataclass_decoder(kind: Any) -> Decoder:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    decoders = {f.name: _decoder(hints[f.name]) for f in fields}
    optional = {
        f.name
        for f in fields
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    }

    def decode(value: Any, name: str) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r:.50}, not an object")
        if unknown := value.keys() - decoders.keys():
            raise ValueError(f"{name} has unknown fields: {', '.join(sorted(unknown)):.200}")
        if missing := decoders.keys() - optional - value.keys():
            raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")
        return kind(**{key: decoders[key](part, key) for key, part in value.items()})

    return decode


def _tuple_decoder(element: Any) -> Decoder:
    decode_element = _decoder(element)

    def decode(value: Any, name: str) -> Any:
        if not isinstance(value, list):
            raise ValueError(f"{name} is {value!r:.50}, not a list")
        return tuple(decode_element(part, name) for part in value)

    return decode


def _union_decoder(alternatives: tuple[Any, ...]) -> Decoder:
    decoders = [_decoder(kind) for kind in alternatives if kind is not type(None)]

    def decode(value: Any, name: str) -> Any:
        if value is None and type(None) in alternatives:
            return None
        for decoder in decoders[:-1]:
            with contextlib.suppress(ValueError):
                return decoder(value, name)
        return decoders[-1](value, name)

    return decode
