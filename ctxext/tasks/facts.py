"""Facts about a small world in a long text and a question that some of them answer.

The idea is that of arXiv 2406.10149; world and words are our own (`building.world`).
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from ctxext.tasks.base import Example, SuiteOptions, Task, TaskContext, as_ids
from ctxext.tasks.building.clean_text import draw_without
from ctxext.tasks.building.placement import Frame, Insertion, check_depth, place
from ctxext.tasks.building.world import QuestionKind, tell


@dataclass(frozen=True)
class Facts(Task):
    """`num_facts` sentences and a question of `kind` (`world.tell`) that a single word completes.

    An answer is right if it contains that word and no other of its kind; words of the question do
    not count. The haystack does not mention the answer.
    """

    name: ClassVar[str] = "facts"
    kind: QuestionKind = "place"
    """The kind of question."""
    num_facts: int = 8
    """Sentences about the small world."""

    def __post_init__(self) -> None:
        kinds = get_args(QuestionKind)
        if self.kind not in kinds:
            raise ValueError(
                f"{self.name}: {self.kind!r} is not known; choose one of {', '.join(kinds)}"
            )

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        return tuple(cls(kind) for kind in get_args(QuestionKind))

    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        """The last fact that decides the answer is at `depth`, in exactly `seq_len` tokens.

        The depths of all facts are a sorted draw of uniform numbers, given that one is `depth`.
        """
        rng = context.rng
        check_depth(depth, self.name)
        story = tell(rng, self.kind, self.num_facts)
        depths = np.sort(rng.random(self.num_facts))
        if depth is not None:
            # Given one of them, the order statistics on both of its sides are uniform again.
            last = story.support[-1]
            before = rng.random(last) * depth
            after = depth + rng.random(self.num_facts - last - 1) * (1 - depth)
            depths = np.concatenate([np.sort(before), [depth], np.sort(after)])
        facts = [context.encode(f"\n{fact}\n") for fact in story.facts]
        words = {label: context.encode(f" {label}") for label in story.labels}
        distractors = [
            label for label in story.labels if label != story.answer and label not in story.question
        ]
        max_new_tokens = max(map(len, words.values()))
        placement = place(
            context,
            seq_len,
            list(map(Insertion, depths.tolist(), facts)),
            Frame(max_new_tokens, tail=context.encode(f"\n{story.question}")),
            task=f"{self.name}, {self.kind}",
            ordered=True,
            draw_filler=lambda count: draw_without(context, count, [story.answer]),
        )
        needles = [[placement.starts[i], len(facts[i])] for i in story.support]
        distances = [len(placement.prompt) - start for start, _ in needles]
        meta = {
            "value": story.answer,
            "needles": needles,
            "distance": distances[0],
            "distances": distances,
            "haystack": placement.excerpts,
        }
        return Example(
            placement.prompt,
            as_ids(words[story.answer]),
            placement.depths[story.support[-1]],
            meta,
            max_new_tokens,
            metric="label",
            references=(story.answer,),
            distractors=tuple(distractors),
            choices=tuple(as_ids(words[label]) for label in distractors),
            stop_at_newline=True,
        )
