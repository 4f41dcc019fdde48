"""Find what a module or the files of a package define, so that no list is kept."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def concrete_classes(module: ModuleType, base: type[T] | tuple[type[T], ...]) -> list[type[T]]:
    """The concrete subclasses of `base` that a module defines, not those it imports."""
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]


def classes_in_package(name: str, base: type[T] | tuple[type[T], ...]) -> list[type[T]]:
    """The concrete subclasses of `base` in the modules of the package `name`, by module."""
    classes: list[type[T]] = []
    for info in pkgutil.iter_modules(importlib.import_module(name).__path__):
        classes += concrete_classes(importlib.import_module(f"{name}.{info.name}"), base)
    return classes


def instances_in_package(name: str, kind: type[T]) -> list[T]:
    """The constants of a type in the modules of the package `name`, by module."""
    modules = [
        importlib.import_module(f"{name}.{info.name}")
        for info in pkgutil.iter_modules(importlib.import_module(name).__path__)
    ]
    return [
        value for module in modules for value in vars(module).values() if isinstance(value, kind)
    ]
