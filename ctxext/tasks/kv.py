"""Key-value recall: several pairs scattered in a long text; one is asked for, the rest distract."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import (
    Example,
    ProseOrCode,
    SharedContextTask,
    SuiteLayout,
    SuiteOptions,
    Task,
    TaskContext,
    TrainingTask,
)
from ctxext.tasks.building.exact_recall import recall_examples, recall_row
from ctxext.tasks.building.wordings import Statement, check_wording, prose

STATEMENTS: dict[ProseOrCode, Statement] = {
    "prose": prose("number"),
    "code": Statement(string.ascii_letters, "# {name}="),
}


@dataclass(frozen=True)
class KeyValue(SharedContextTask, TrainingTask):
    """`num_pairs` lines `The number of the otter is 482.`; the prompt ends with a question for one.

    The question is `What is the number of the otter? The number of the otter is`.
    In the wording "code": `# q=482`, and `# q=`.
    """

    name: ClassVar[str] = "kv"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    num_pairs: int = 8
    """Pairs in the text."""
    digits: int = 3
    """Digits of a value."""
    wording: ProseOrCode = "prose"
    """"prose" for models of language; "code" for a base that was trained on that wording."""

    def __post_init__(self) -> None:
        check_wording(self.name, self.wording)

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        return (cls(wording=options.wording),)

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A pair at each depth and a question for each; further pairs of `num_pairs` anywhere."""
        count = max(self.num_pairs, len(depths))
        needles = STATEMENTS[self.wording].draw(context, count, self.digits)
        return recall_examples(context, seq_len, needles, depths=depths, task=self.name)

    def training_row(self, context: TaskContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes of which half to all is pairs and questions (`recall_row`)."""
        statement = STATEMENTS[self.wording]
        needles = statement.draw(context, statement.max_needles(self.digits), self.digits)
        return recall_row(context, length, needles, task=self.name, needle_share=(0.5, 1))
