"""Many-shot in-context learning: labels without meaning, which only the examples explain."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

from ctxext.tasks.base import Example, SharedContextTask, SuiteLayout, TaskContext
from ctxext.tasks.building.categories import CATEGORIES
from ctxext.tasks.building.line_questions import AskedLines, LineQuestion, ask_lines
from ctxext.tasks.building.vocabulary import distinct

WORDS = min(map(len, CATEGORIES.values()))
"""Words of the smallest category."""
ROUNDS_WITHOUT_LENGTH = 2
"""Examples of each class where no length is given."""


@dataclass(frozen=True)
class ManyShot(SharedContextTask):
    """Words with labels, such as `badger: zubad`, and one word more, whose label is asked for.

    Words of `num_classes` categories (animals, tools ...) have one label each, five letters drawn
    for each text, so that nothing but the examples tells what a label means (arXiv 2404.11018; the
    labels of HELMET's sets, arXiv 2410.02694, are numbers, drawn likewise). As many rounds as fit
    have one example of every class in random order, so that classes are balanced; words of long
    texts repeat. No word that is asked about is among the examples. To guess a label of the text is
    right once in `num_classes` times.

    All examples count alike, so that records have no depth: `depths` only say how many questions
    there are about a text.
    """

    name: ClassVar[str] = "many-shot"
    suite_layout: ClassVar[SuiteLayout] = "shared-text"
    num_classes: int = 6
    """Categories, each with a label."""

    def __post_init__(self) -> None:
        if not 2 <= self.num_classes <= len(CATEGORIES):
            raise ValueError(
                f"{self.name}: num_classes must be 2 to {len(CATEGORIES)}, got {self.num_classes}"
            )

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A word for each depth, of as many classes as there are, about one list of examples."""
        rng = context.rng
        most = self.num_classes * (WORDS // 2)
        if len(depths) > most:
            raise ValueError(f"{self.name}: ask for at most {most} questions about a text")
        names = rng.permutation(list(CATEGORIES))[: self.num_classes].tolist()
        labels = dict(zip(names, islice(distinct(rng, "coined"), len(names)), strict=True))
        words = {name: rng.permutation(CATEGORIES[name]).tolist() for name in names}
        turns = rng.permutation(self.num_classes)
        asked = [names[turns[i % self.num_classes]] for i in range(len(depths))]
        questions = [words[name].pop() for name in asked]
        label_ids = {name: context.encode(f" {label}") for name, label in labels.items()}
        question_ids = [context.encode(f"\n{word}:") for word in questions]
        room = max(map(len, label_ids.values())) + len(context.newline)
        if seq_len is None:
            budget = None
        else:
            budget = seq_len - len(context.bos) - max(map(len, question_ids)) - room
        lines, classes = self._examples(context, words, label_ids, budget)
        line_questions = []
        for name, word, ids in zip(asked, questions, question_ids, strict=True):
            others = [other for other in names if other != name]
            question = LineQuestion(
                ids,
                label_ids[name],
                [i for i, other in enumerate(classes) if other == name],
                [labels[name]],
                distractors=[labels[other] for other in others],
                choices=[label_ids[other] for other in others],
                facts={
                    "name": word,
                    "value": labels[name],
                    "category": name,
                    "shots": len(lines) // self.num_classes,
                },
            )
            line_questions.append(question)
        return ask_lines(
            context, seq_len, lines, line_questions, AskedLines(self.name, "label", room)
        )

    def _examples(
        self,
        context: TaskContext,
        words: dict[str, list[str]],
        label_ids: dict[str, list[int]],
        budget: int | None,
    ) -> tuple[list[list[int]], list[str]]:
        """Lines and their classes, in rounds of all classes; at least one round."""
        lines: list[list[int]] = []
        classes: list[str] = []
        for number, order in enumerate(_rounds(context, list(words))):
            added = [
                context.encode(f"\n{words[name][number % len(words[name])]}:") + label_ids[name]
                for name in order
            ]
            if budget is not None:
                budget -= sum(map(len, added))
            is_full = number == ROUNDS_WITHOUT_LENGTH if budget is None else budget < 0
            if is_full and number:
                break
            lines += added
            classes += order
        return lines, classes


def _rounds(context: TaskContext, names: list[str]) -> Iterator[list[str]]:
    """Endless random orders of all classes."""
    while True:
        yield context.rng.permutation(names).tolist()
