"""Passkey retrieval: a five-digit key in a long text, asked for at its end (arXiv 2305.16300)."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Example, SharedContextTask, TaskContext, TrainingTask
from ctxext.tasks.building.exact_recall import recall_examples, recall_row
from ctxext.tasks.building.needles import Needle, draw_digit_needles, max_digit_needles

KEYS = string.ascii_uppercase


@dataclass(frozen=True)
class Passkey(SharedContextTask, TrainingTask):
    """`# key K=48213` once in the haystack; the prompt ends with `# key K=`.

    Training rows hold several keys.
    """

    name: ClassVar[str] = "passkey"
    digits: int = 5
    """Digits of the key."""

    def _needles(self, context: TaskContext, count: int) -> list[Needle]:
        return draw_digit_needles(
            context, count, keys=KEYS, stem=lambda key: f"# key {key}=", digits=self.digits
        )

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A key at each depth (0 first, 1 just before the question), and a question for each."""
        needles = self._needles(context, len(depths))
        return recall_examples(context, seq_len, needles, depths=depths, task=self.name)

    def training_row(self, context: TaskContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes, from one key in much text to nothing but keys and questions (`recall_row`)."""
        needles = self._needles(context, max_digit_needles(KEYS, self.digits))
        return recall_row(context, length, needles, task=self.name, needle_share=(0, 1))
