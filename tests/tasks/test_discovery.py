"""A task is one file: what a new one gets without any other file being touched."""

import pkgutil
import sys
from pathlib import Path

import numpy as np
import pytest

from ctxext import serialization, tasks
from ctxext.evals import suite
from ctxext.tasks import Example, Task, TaskContext
from support.synthetic import TOKENIZERS, haystack

FILE = '''
from dataclasses import dataclass
from typing import ClassVar

from ctxext.tasks.base import Example, SuiteLayout, Task, TaskContext, as_ids


@dataclass(frozen=True)
class LastWord(Task):
    """The word before the end."""

    name: ClassVar[str] = "last-word"
    suite_layout: ClassVar[SuiteLayout] = "whole-text"
    times: int = 2

    def example(self, context: TaskContext, seq_len, depth=None) -> Example:
        text, excerpts = context.draw_haystack(seq_len - 3)
        word = context.encode(" one")[:1]
        prompt = as_ids([*context.bos, *text, *word])
        meta = {"needles": [[len(prompt) - 1, 1]], "distance": 1, "haystack": excerpts}
        return Example(prompt, as_ids(word), 1.0, meta, 1)
'''


@pytest.fixture
def new_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "last_word.py").write_text(FILE)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    caches = (tasks.task_classes, tasks.by_suite_name, serialization.tagged_classes)
    for cache in caches:
        cache.cache_clear()
    yield
    sys.modules.pop("ctxext.tasks.last_word", None)
    vars(tasks).pop("last_word", None)
    for cache in caches:
        cache.cache_clear()


def test_a_new_file_is_a_task_everywhere(new_task) -> None:
    task = tasks.LastWord(times=3)
    context = TaskContext(np.random.default_rng(0), TOKENIZERS["bundled"], haystack("bundled"))
    assert isinstance(task.example(context, 50), Example)
    (evaluation,) = suite.evaluations(["last-word"], suite.SuiteConfig((64,)))
    assert evaluation.task == tasks.LastWord() and evaluation.depths == (0.0,)
    assert tasks.LastWord in tasks.suite_classes()
    assert serialization.to_json(task) == {"__type__": "task/last-word", "times": 3}
    assert serialization.from_json(serialization.to_json(task)) == task


def test_every_file_of_the_package_holds_a_task() -> None:
    files = {module.name for module in pkgutil.iter_modules(tasks.__path__) if not module.ispkg}
    used = {task.__module__.rpartition(".")[2] for task in tasks.task_classes()}
    assert files - used == {"base"}
    names = list(tasks.by_suite_name())
    assert names == sorted(names)
    assert all(issubclass(task, Task) for task in tasks.suite_classes())


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        tasks.Unknown  # noqa: B018
