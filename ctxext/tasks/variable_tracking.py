"""Variable tracking: chains of names for a value (vt of RULER, arXiv 2404.06654)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from ctxext.tasks.base import (
    Example,
    SharedContextTask,
    SuiteOptions,
    Task,
    TaskContext,
    as_ids,
)
from ctxext.tasks.building.noise import SENTENCES, noise, without_excerpts
from ctxext.tasks.building.placement import Frame, Insertion, place
from ctxext.tasks.building.value_lists import MAX_LIST_CHOICES, join_values
from ctxext.tasks.building.vocabulary import distinct

TOKENS_PER_LINK = 32
"""Room that a text has for each assignment, where questions about several chains share it."""


class _Link(NamedTuple):
    """One assignment: its depth, the number of its chain, its place in the chain, its ids."""

    depth: float
    chain: int
    hop: int
    ids: list[int]


@dataclass(frozen=True)
class VariableTracking(SharedContextTask):
    """`num_chains` values, passed on `hops` times: `Let zubad be 48213.`, `Let fikon be zubad.`

    All names of one value are asked for, after an example drawn anew for each text. The score is
    the share of the names that are written. The first link is at the depth, the others after it.
    """

    name: ClassVar[str] = "vt"
    num_chains: int = 1
    """Values that are passed on."""
    hops: int = 4
    """How often each one is passed on."""
    hay: Literal["text", "noise"] = "noise"
    """The haystack: text, or one passage of noise repeated."""
    max_new_tokens: int = 0

    def __post_init__(self) -> None:
        if self.num_chains < 1 or self.hops < 1 or self.hay not in ("text", "noise"):
            raise ValueError(
                f"vt: {self.num_chains} chains of {self.hops} hops in {self.hay!r}: give at least "
                "one of each, and text or noise"
            )

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        return (cls(hops=4 if options.min_seq_len >= 512 else 1),)

    @property
    def tokens_per_question(self) -> int:
        return TOKENS_PER_LINK * (self.hops + 1)

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A chain for each depth, at which its first link is, and a question for each.

        There are further chains up to `num_chains`. All others of a chain come after its first.
        """
        rng = context.rng
        length = self.hops + 1
        num_chains = max(self.num_chains, len(depths))
        num_drawn = num_chains + 1  # the last chain is that of the example
        words = list(islice(distinct(rng, "coined"), num_drawn * length))
        chains = np.reshape(words, (num_drawn, length)).tolist()
        values = [str(value) for value in 10_000 + rng.choice(90_000, num_drawn, replace=False)]
        link_depths = np.sort(rng.random((num_chains, length)), 1)
        for i, depth in enumerate(depths):
            if depth is not None:
                after = np.sort(rng.uniform(min(depth, 1.0), 1.0, self.hops))
                link_depths[i] = [depth, *after]
        links = sorted(
            _Link(float(link_depths[i, j]), i, j, context.encode(f"\n{line}\n"))
            for i in range(num_chains)
            for j, line in enumerate(_lines(chains[i], values[i]))
        )
        name_ids = [[context.encode(f" {word}") for word in chain] for chain in chains]
        answers = [join_values(context, ids) for ids in name_ids]
        shot = _worked_example(context, chains[-1], values[-1]) + answers[-1] + context.newline
        max_new_tokens = max(self.max_new_tokens, *map(len, answers))
        questions = [_question(context, value) for value in values[: len(depths)]]
        if self.hay == "noise":
            context = dataclasses.replace(context, haystack=noise(context))
        placement = place(
            context,
            seq_len,
            [Insertion(link.depth, link.ids) for link in links],
            Frame(max(map(len, questions)) + max_new_tokens, head=shot),
            task=self.name,
            ordered=True,
        )
        examples = []
        for chain, question in enumerate(questions):
            gold = [i for i, link in enumerate(links) if link.chain == chain]
            spans = [[placement.starts[i], len(links[i].ids)] for i in gold]
            prompt = np.concatenate([placement.prompt, as_ids(question)])
            wrong = [*answers[:chain], *answers[chain + 1 :]]
            others = [*chains[:chain], *chains[chain + 1 :]]
            meta = {
                "needles": spans,
                "distance": len(prompt) - spans[0][0],
                "value": values[chain],
                "haystack": placement.excerpts,
            }
            example = Example(
                prompt,
                as_ids(answers[chain]),
                placement.depths[gold[0]],
                meta,
                max_new_tokens,
                metric="all",
                references=tuple(chains[chain]),
                distractors=tuple(word for other in others for word in other),
                choices=tuple(as_ids(ids) for ids in wrong[:MAX_LIST_CHOICES]),
                stop_at_newline=True,
                num_shared_tokens=len(placement.prompt),
            )
            examples.append(without_excerpts(example) if self.hay == "noise" else example)
        return examples


def _worked_example(context: TaskContext, words: Sequence[str], value: str) -> list[int]:
    """A chain in a random layout and the question about it."""
    text = ""
    for line in _lines(words, value):
        sentences = context.rng.permutation(SENTENCES)[: context.rng.integers(3)]
        text += "".join(sentences) + f"\n{line}\n"
    return context.encode(text) + _question(context, value)


def _lines(words: Sequence[str], value: str) -> list[str]:
    """The assignments of a chain: the first word to the value, each other to the word before."""
    assigned = (value, *words[:-1])
    return [f"Let {word} be {to}." for word, to in zip(words, assigned, strict=True)]


def _question(context: TaskContext, value: str) -> list[int]:
    return context.encode(f"\nNames that stand for {value}, from first to last:")
