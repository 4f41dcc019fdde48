"""Passkey retrieval: a five-digit key in a long text, asked for at its end (arXiv 2305.16300)."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import (
    Example,
    ProseOrCode,
    SharedContextTask,
    SuiteOptions,
    Task,
    TaskContext,
    TrainingTask,
)
from ctxext.tasks.building.exact_recall import recall_examples, recall_row
from ctxext.tasks.building.wordings import Statement, check_wording, prose

STATEMENTS: dict[ProseOrCode, Statement] = {
    "prose": prose("passkey"),
    "code": Statement(string.ascii_uppercase, "# key {name}="),
}


@dataclass(frozen=True)
class Passkey(SharedContextTask, TrainingTask):
    """`The passkey of the lantern is 48213.` once in the haystack, and a question at its end.

    The question is `What is the passkey of the lantern? The passkey of the lantern is`.
    In the wording "code": `# key K=48213`, and `# key K=`. Training rows hold several keys.
    """

    name: ClassVar[str] = "passkey"
    digits: int = 5
    """Digits of the key."""
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
        """A key at each depth (0 first, 1 just before the question), and a question for each."""
        needles = STATEMENTS[self.wording].draw(context, len(depths), self.digits)
        return recall_examples(context, seq_len, needles, depths=depths, task=self.name)

    def training_row(self, context: TaskContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes, from one key in much text to nothing but keys and questions (`recall_row`)."""
        statement = STATEMENTS[self.wording]
        needles = statement.draw(context, statement.max_needles(self.digits), self.digits)
        return recall_row(context, length, needles, task=self.name, needle_share=(0, 1))
