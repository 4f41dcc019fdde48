"""Key tokens that a test chooses: spans by hand, or the answers of a task."""

from dataclasses import dataclass

import numpy as np

from ctxext.evals.base import Model, item_rng
from ctxext.evals.key_tokens import KeyedText, Keys, Spans, tokens_inside
from ctxext.tasks import Task, TaskContext
from ctxext.tasks.base import bos_prefix


@dataclass(frozen=True)
class GivenKeys(Keys):
    """Character spans for each document of the source, by its number."""

    spans: tuple[Spans, ...]

    @property
    def origin(self) -> str:
        return "given spans"

    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> KeyedText:
        ids, spans = lm.tokenizer.spans(lm.tokenizer.decode(document.tolist()))
        return KeyedText(np.asarray(ids), tokens_inside(spans, self.spans[number]))


@dataclass(frozen=True)
class AnswerKeys(Keys):
    """The answer tokens of a retrieval task whose record is hidden in the document at `depth`."""

    task: Task
    depth: float = 0.0

    @property
    def origin(self) -> str:
        return f"answers of {self.task.name}"

    def read(self, lm: Model, document: np.ndarray, number: int, *, item: str) -> KeyedText:
        size = len(document) + len(bos_prefix(lm.tokenizer))
        context = TaskContext(item_rng(item), lm.tokenizer, [document])
        example = self.task.example(context, size, self.depth)
        ids = np.concatenate([example.prompt, example.answer])
        return KeyedText(ids, np.arange(len(example.prompt), size))
