"""Retrieval tasks, one file per task; they are discovered, not listed: `ctxext.tasks.<Class>`."""

import functools
from typing import Any

from ctxext.discovery import classes_in_package
from ctxext.tasks.base import FILLER_WEIGHT as FILLER_WEIGHT
from ctxext.tasks.base import Example as Example
from ctxext.tasks.base import Haystack as Haystack
from ctxext.tasks.base import ProseOrCode as ProseOrCode
from ctxext.tasks.base import SuiteOptions as SuiteOptions
from ctxext.tasks.base import Task as Task
from ctxext.tasks.base import TaskContext as TaskContext
from ctxext.tasks.base import TrainingTask as TrainingTask
from ctxext.tasks.base import without_needles as without_needles


@functools.cache
def task_classes() -> tuple[type[Task], ...]:
    """Every concrete task class of this package's files, by file."""
    return tuple(classes_in_package(__name__, Task))


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
