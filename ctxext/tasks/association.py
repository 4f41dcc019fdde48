"""A name to find by world knowledge: needle and question share no content word.

The idea is that of arXiv 2502.05167; the sentences and names are our own (`building.implications`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import (
    Example,
    SharedContextTask,
    SuiteLayout,
    SuiteOptions,
    Task,
    TaskContext,
    as_ids,
)
from ctxext.tasks.building.clean_text import draw_without
from ctxext.tasks.building.implications import (
    FUNCTION_WORDS,
    IMPLICATIONS,
    NAMES,
    QUESTION,
    SENTENCES,
)
from ctxext.tasks.building.placement import Frame, Insertion, place


@dataclass(frozen=True)
class Association(SharedContextTask):
    """`num_needles` sentences about different people; the question is whom something follows for.

    The difference from the literal control is the association. `overlap` in a record: the share of
    the question's content words that its needle contains. The haystack mentions none of the names.
    """

    name: ClassVar[str] = "association"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    num_needles: int = 4
    """Sentences about different people."""
    literal: bool = False
    """Ask with the very words of the needle: the control."""

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        return (cls(literal=False), cls(literal=True))

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A needle at each depth and a question for each; further needles anywhere."""
        rng = context.rng
        depths = [context.draw_depth(depth) for depth in depths]
        count = max(self.num_needles, len(depths))
        if not 1 <= count <= len(NAMES):
            raise ValueError(
                f"{self.name}: {count} needles do not fit {len(NAMES)} names: "
                f"ask for 1 to {len(NAMES)}"
            )
        names = [NAMES[i] for i in rng.permutation(len(NAMES))[:count]]
        implications = [IMPLICATIONS[i] for i in rng.permutation(len(IMPLICATIONS))[:count]]
        sentences = [SENTENCES[i] for i in rng.integers(len(SENTENCES), size=count)]
        needles = [
            sentence.format(name=name, fact=implication.fact)
            for sentence, name, implication in zip(sentences, names, implications, strict=True)
        ]
        questions = [
            QUESTION.format(consequence=i.fact if self.literal else i.consequence)
            for i in implications[: len(depths)]
        ]
        needle_ids = [context.encode(f"\n{needle}\n") for needle in needles]
        question_ids = [as_ids(context.encode(f"\n{question}")) for question in questions]
        answers = {name: as_ids(context.encode(f" {name}")) for name in NAMES}
        max_new_tokens = max(map(len, answers.values()))
        needle_depths = [*depths, *[None] * (count - len(depths))]
        placement = place(
            context,
            seq_len,
            list(map(Insertion, needle_depths, needle_ids)),
            Frame(max(map(len, question_ids)) + max_new_tokens),
            task=self.name,
            draw_filler=lambda size: draw_without(context, size, NAMES),
        )
        examples = []
        for i, ids in enumerate(question_ids):
            prompt = np.concatenate([placement.prompt, ids])
            others = [*names[:i], *names[i + 1 :]]
            distances = [len(prompt) - start for start in placement.starts]
            meta = {
                "value": names[i],
                "pair": IMPLICATIONS.index(implications[i]),
                "overlap": overlap(questions[i], needles[i]),
                "needles": [[placement.starts[i], len(needle_ids[i])]],
                "distance": distances[i],
                "distances": [distances[i], *distances[:i], *distances[i + 1 :]],
                "haystack": placement.excerpts,
            }
            examples.append(
                Example(
                    prompt,
                    answers[names[i]],
                    placement.depths[i],
                    meta,
                    max_new_tokens,
                    metric="any",
                    references=(names[i],),
                    distractors=tuple(others),
                    choices=tuple(answers[name] for name in others),
                    stop_at_newline=True,
                    num_shared_tokens=len(placement.prompt),
                )
            )
        return examples


def content_words(text: str) -> set[str]:
    """The words in lower case, without those that only hold a sentence together."""
    return set(re.findall(r"[^\W\d_]+", text.lower())) - FUNCTION_WORDS


def overlap(question: str, needle: str) -> float:
    """The share of the question's content words that the needle contains, 0..1."""
    words = content_words(question)
    return len(words & content_words(needle)) / len(words)
