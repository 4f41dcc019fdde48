"""Line retrieval: a text of nothing but records, one of them asked for (as in LongEval)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from ctxext.tasks.base import Example, SharedContextTask, SuiteLayout, TaskContext
from ctxext.tasks.building.needle_questions import AnswerFormat, NeedleQuestion, ask_needles
from ctxext.tasks.building.needles import Needle, make_needle
from ctxext.tasks.building.vocabulary import distinct


@dataclass(frozen=True)
class Lines(SharedContextTask):
    """As many lines `The drawer amber-falcon holds 4821377` as fit; one number is asked for.

    The first number that is written counts.
    """

    name: ClassVar[str] = "lines"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    max_new_tokens: int = 0

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A line at each depth, as a share of all lines, and a question for each."""
        needles = self._needles(context)
        questions = [
            NeedleQuestion(needle.question, [needle]) for needle in islice(needles, len(depths))
        ]
        return ask_needles(
            context,
            seq_len,
            questions,
            (),
            depths=depths,
            task=self.name,
            answer=AnswerFormat("first-number", self.max_new_tokens),
            line_source=needles,
        )

    @staticmethod
    def _needles(context: TaskContext) -> Iterator[Needle]:
        values = distinct(context.rng, "number")
        for key, value in zip(distinct(context.rng, "words"), values, strict=False):
            stem = f"The drawer {key} holds"
            yield make_needle(context, key, value, stem=stem, before_value=" ")
