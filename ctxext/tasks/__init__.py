"""Retrieval tasks, one file per task; they are discovered, not listed: `ctxext.tasks.<Class>`."""

import functools
import importlib
import inspect
import pkgutil
from typing import Any

from ctxext.tasks.base import FILLER_WEIGHT as FILLER_WEIGHT
from ctxext.tasks.base import Example as Example
from ctxext.tasks.base import Haystack as Haystack
from ctxext.tasks.base import SuiteOptions as SuiteOptions
from ctxext.tasks.base import Task as Task
from ctxext.tasks.base import TaskContext as TaskContext
from ctxext.tasks.base import TrainingTask as TrainingTask
from ctxext.tasks.base import without_needles as without_needles


@functools.cache
def task_classes() -> tuple[type[Task], ...]:
    """Every concrete task class of this package's files, by file."""
    classes: list[type[Task]] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        classes += [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, Task)
            and value.__module__ == module.__name__
            and not inspect.isabstract(value)
        ]
    return tuple(classes)


@functools.cache
def by_suite_name() -> dict[str, type[Task]]:
    """The class that each task name of `--evals` belongs to."""
    names = {name: task for task in task_classes() for name in task.suite_names()}
    return dict(sorted(names.items()))


def suite_classes() -> tuple[type[Task], ...]:
    """The classes that have a name for `--evals`."""
    return tuple(dict.fromkeys(by_suite_name().values()))


def __getattr__(name: str) -> Any:
    for task in task_classes():
        if task.__name__ == name:
            return task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
