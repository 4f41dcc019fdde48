"""Questions about one of many passages, with the passage that answers at a depth (HELMET's RAG)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from ctxext.tasks.base import Example, SharedContextTask, SuiteLayout, TaskContext
from ctxext.tasks.building.line_questions import (
    AskedLines,
    LineQuestion,
    ask_lines,
    order_lines,
)
from ctxext.tasks.building.placement import lines_that_fit
from ctxext.tasks.building.registry import RELATIONS, Person, people

NUM_WRONG_CHOICES = 7
"""Wrong continuations of each question; every one costs as much to score as the answer."""
PASSAGES_WITHOUT_LENGTH = 4
"""Further passages where no length is given."""


@dataclass(frozen=True)
class Rag(SharedContextTask):
    """As many passages about invented people as fit, and a question that one of them answers.

    The categories are those of HELMET (arXiv 2410.02694): the passage with the answer is at the
    depth among distractors, of which some are about people with the same first or last name, and
    `shots` worked examples about other passages of the text come before the question. An answer is
    right if it contains the value and no other of its kind. A guess is right once in 24 times, and
    the choice is among 8 values.
    """

    name: ClassVar[str] = "rag"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    shots: int = 2
    """Worked examples before the question."""

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ValueError(f"{self.name}: shots must be at least 0")

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A passage at each depth and a question for each; all others are anywhere."""
        rng = context.rng
        source = people(rng)
        # Neighbours in the source share a name, so one more makes every question a choice.
        needed = list(islice(source, len(depths) + self.shots + 1))
        asked = needed[: len(depths)]
        shown = needed[len(depths) + 1 :]
        relations = [str(rng.choice(list(RELATIONS))) for _ in [*asked, *shown]]
        words = {
            value: context.encode(f" {value}")
            for relation in RELATIONS.values()
            for value in relation.values
        }
        tail = [
            token
            for person, relation in zip(shown, relations[len(depths) :], strict=True)
            for token in _question(context, person, relation) + words[person.values[relation]]
        ]
        questions = [
            _question(context, person, relation)
            for person, relation in zip(asked, relations, strict=False)
        ]
        room = max(map(len, words.values())) + len(context.newline)
        passages = [_passage(context, person) for person in needed]
        more = (_passage(context, person) for person in source)
        if seq_len is None:
            passages += islice(more, PASSAGES_WITHOUT_LENGTH)
        else:
            used = len(context.bos) + len(tail) + max(map(len, questions)) + room
            passages += lines_that_fit(more, seq_len - used - sum(map(len, passages)), len)
        at_depth = {} if seq_len is None else dict(enumerate(map(context.draw_depth, depths)))
        order = order_lines(context, len(passages), at_depth, task=self.name)
        line_questions = []
        for i, (person, relation, ids) in enumerate(zip(asked, relations, questions, strict=False)):
            value = person.values[relation]
            values = rng.permutation(RELATIONS[relation].values).tolist()
            others = [other for other in values if other != value]
            facts = {
                "name": person.name,
                "value": value,
                "relation": relation,
                "num_passages": len(passages),
            }
            question = LineQuestion(
                ids,
                words[value],
                [order.index(i)],
                [value],
                distractors=others,
                choices=[words[other] for other in others[:NUM_WRONG_CHOICES]],
                facts=facts,
            )
            line_questions.append(question)
        how = AskedLines(self.name, "label", room, tail)
        return ask_lines(context, seq_len, [passages[i] for i in order], line_questions, how)


def _passage(context: TaskContext, person: Person) -> list[int]:
    return context.encode(f"\n\nDocument: {person.passage(context.rng)}")


def _question(context: TaskContext, person: Person, relation: str) -> list[int]:
    return context.encode(f"\n\nQuestion: {person.question(relation)}\nAnswer:")
