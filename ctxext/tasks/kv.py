"""Key-value recall: several pairs scattered in a long text; one is asked for, the rest distract."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Example, SharedContextTask, SuiteLayout, TaskContext, TrainingTask
from ctxext.tasks.building.exact_recall import recall_examples, recall_row
from ctxext.tasks.building.needles import Needle, draw_digit_needles, max_digit_needles

KEYS = string.ascii_letters


@dataclass(frozen=True)
class KeyValue(SharedContextTask, TrainingTask):
    """`num_pairs` lines `# q=482` in the haystack; the prompt ends with `# q=` for one of them."""

    name: ClassVar[str] = "kv"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    num_pairs: int = 8
    """Pairs in the text."""
    digits: int = 3
    """Digits of a value."""

    def _needles(self, context: TaskContext, count: int) -> list[Needle]:
        return draw_digit_needles(
            context, count, keys=KEYS, stem=lambda key: f"# {key}=", digits=self.digits
        )

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A pair at each depth and a question for each; further pairs of `num_pairs` anywhere."""
        needles = self._needles(context, max(self.num_pairs, len(depths)))
        return recall_examples(context, seq_len, needles, depths=depths, task=self.name)

    def training_row(self, context: TaskContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes of which half to all is pairs and questions (`recall_row`)."""
        needles = self._needles(context, max_digit_needles(KEYS, self.digits))
        return recall_row(context, length, needles, task=self.name, needle_share=(0.5, 1))
