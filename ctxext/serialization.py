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
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ctxext.methods import find, method_name

PACKAGES = (
    "ctxext.attention",
    "ctxext.data",
    "ctxext.evals",
    "ctxext.experiment",
    "ctxext.methods",
    "ctxext.model",
    "ctxext.optim",
    "ctxext.parallel",
    "ctxext.positions",
    "ctxext.rope",
    "ctxext.tasks",
)
"""Where classes with a type tag are looked for."""


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
            f"{tag} has no field {', '.join(sorted(unknown))}; was this written by another version?"
        )
    try:
        return cls(**fields)
    except TypeError as error:  # a field is missing, or holds something of another kind
        raise ValueError(f"{tag} does not fit this version: {error}") from None


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
        return find(str(tag))
    cls = tagged_classes().get(str(tag))
    if cls is None:
        raise ValueError(f"unknown type {tag!r} in the configuration")
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
