"""Frozen dataclasses as JSON and back, under type tags that do not change when a file moves.

A class of the package names its own tag in `type_tag`. A tag that ends in "/" is a prefix, which
the base class of a seam declares and to which every subclass adds its name in kebab case: `Yarn` is
"rope/yarn". A class from a user's file is tagged FILE.py:Class.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ctxext.files import read_json
from ctxext.methods import class_in_file, method_name

PACKAGES = (
    "ctxext.attention",
    "ctxext.data",
    "ctxext.evals",
    "ctxext.experiment",
    "ctxext.losses",
    "ctxext.methods",
    "ctxext.model",
    "ctxext.optim",
    "ctxext.parallel",
    "ctxext.positions",
    "ctxext.rope",
    "ctxext.tasks",
)
"""Where classes with a type tag are looked for."""
LARGEST_INTEGER = 2**63
LARGEST_NUMBER = 1e300
"""No field holds more, nor infinity or NaN."""
T = TypeVar("T")


def type_tag(cls: type) -> str:
    """The tag of a dataclass: "rope/yarn" for one of the package, FILE.py:Class for any other.

    Raises ValueError for a class of the package that declares none, and for one that no file
    defines.
    """
    if not cls.__module__.startswith("ctxext."):
        file = getattr(sys.modules[cls.__module__], "__file__", None)
        if file is None:
            raise ValueError(
                f"cannot write {cls.__name__} as JSON: it is not defined in a Python file"
            )
        return f"{file}:{cls.__name__}"
    tag = getattr(cls, "type_tag", None)
    if tag is None:
        raise ValueError(f"cannot write {cls.__name__} as JSON: the class declares no type_tag")
    return tag + method_name(cls) if tag.endswith("/") else tag


def to_json(value: Any) -> Any:
    """Plain JSON; a dataclass becomes an object with its tag under "__type__".

    Raises ValueError for anything but numbers, text, tuples and dataclasses.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"__type__": type_tag(type(value)), **fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    raise ValueError(
        f"cannot write {value!r} as JSON; experiments hold numbers, text, tuples and dataclasses"
    )


def from_json(value: Any, *, trust: bool = False) -> Any:
    """The inverse of `to_json`. Code outside the package is imported only with `trust`.

    Raises ValueError for an unknown type or field, and for values that do not fit their fields.
    """
    if isinstance(value, list):
        return tuple(from_json(item, trust=trust) for item in value)
    if not isinstance(value, dict):
        return value
    tag = value.get("__type__")
    cls = _class_of(tag, trust=trust)
    fields = {key: from_json(item, trust=trust) for key, item in value.items() if key != "__type__"}
    unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(
            f"{tag} has no field {', '.join(sorted(unknown)):.200}; was this written by another "
            "version?"
        )
    for name, hint in _hints(cls).items():
        if name in fields and not _fits(fields[name], hint):
            got = str(value[name])[:50]
            raise ValueError(f"{tag} does not fit this version: {name} cannot be {got!r}")
    try:
        return cls(**fields)
    # A field is missing, or a part of one is of another kind or size.
    except (TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise ValueError(f"{tag} does not fit this version: {error}") from None


def read_saved(
    file: str | Path, kind: type[T] | tuple[type[T], ...], *, key: str = "", trust: bool = False
) -> T:
    """The dataclass that a JSON file holds, or holds under `key`. `trust`: see `from_json`.

    Raises ValueError naming the file if it is missing, or holds anything but a `kind`.
    """
    value = read_json(file)
    if key and (not isinstance(value, dict) or key not in value):
        raise ValueError(f"{file} has no {key}; restore it")
    value = value[key] if key else value
    try:
        saved = from_json(value, trust=trust)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(saved, kind):
        place = f" under {key}" if key else ""
        raise ValueError(
            f"{file} holds {str(value)[:50]!r}{place}, which is of another kind; restore it"
        )
    return saved


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of the fields of a dataclass; {} where a user's file names some that are not."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value can be that of a field; what is not a plain type or a class always can."""
    origin = typing.get_origin(hint)
    kinds = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, kind) for kind in kinds)
    if origin is typing.Literal:
        return value in kinds
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is ...:
            return all(_fits(item, kinds[0]) for item in value)
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is float:
        return type(value) in (int, float) and abs(value) < LARGEST_NUMBER
    if hint is int:
        return type(value) is int and abs(value) < LARGEST_INTEGER
    if hint is bool:
        return type(value) is bool
    if not inspect.isclass(hint) or hint is Any or getattr(hint, "_is_protocol", False):
        return True
    return isinstance(value, hint)


@functools.cache
def tagged_classes() -> dict[str, type]:
    """Every class of the package that can be read back, by its tag."""
    classes: dict[str, type] = {}
    for module in _modules():
        for cls in vars(module).values():
            if _is_serializable(cls) and cls.__module__ == module.__name__:
                tag = type_tag(cls)
                assert tag not in classes, f"{cls} and {classes[tag]} have the same tag {tag!r}"
                classes[tag] = cls
    return classes


def _class_of(tag: Any, *, trust: bool) -> Any:
    """The class of a tag. A tag of the package is looked up, never imported."""
    file, _, _ = str(tag).rpartition(":")
    if file.endswith(".py"):
        if not trust:
            raise ValueError(f"this run uses code from {file}; pass --trust-run to import it")
        cls = class_in_file(str(tag))
        if not _is_serializable(cls):
            raise ValueError(f"{str(tag)[:200]} is nothing that an experiment can hold")
        return cls
    cls = tagged_classes().get(str(tag))
    if cls is None:
        raise ValueError(f"unknown type {str(tag)[:50]!r} in the configuration")
    return cls


def _is_serializable(cls: Any) -> bool:
    return (
        inspect.isclass(cls)
        and dataclasses.is_dataclass(cls)
        and not inspect.isabstract(cls)
        and not cls.__name__.startswith("_")
        and hasattr(cls, "type_tag")
    )


def _modules() -> Iterator[ModuleType]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for info in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
            yield importlib.import_module(info.name)
