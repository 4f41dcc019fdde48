"""Training rows of a retrieval task."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxext.data.corpus import Corpus, Row, Rows
from ctxext.data.sources.base import Source, TextSource
from ctxext.data.sources.stdlib import Stdlib
from ctxext.tasks.base import TaskContext, TrainingTask
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Synthetic(Source):
    """Rows of a retrieval task, its needles hidden in text from `haystack`."""

    task: TrainingTask
    """The task whose questions and answers fill the rows."""
    haystack: TextSource = Stdlib("train")
    """The text that the needles are hidden in."""

    def open(self, tokenizer: TokenizerLike) -> "TaskRows":
        return TaskRows(self.task, tokenizer, self.haystack.open(tokenizer))


class TaskRows(Rows):
    """Rows of one task, its needles hidden in a haystack."""

    def __init__(self, task: TrainingTask, tokenizer: TokenizerLike, haystack: Corpus) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.haystack = haystack
        self.texts = haystack.documents()

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        context = TaskContext(rng, self.tokenizer, self.texts)
        tokens, weights = self.task.training_row(context, seq_len + 1)
        return Row(tokens[:-1], tokens[1:], weights[1:], np.ones(seq_len, np.int32))

    def longest_text(self, seq_len: int) -> int:
        return seq_len  # the question and its haystack are one text

    def provenance(self) -> dict[str, Any]:
        return {
            "kind": "synthetic",
            "task": repr(self.task),
            "haystack": self.haystack.provenance(),
        }
