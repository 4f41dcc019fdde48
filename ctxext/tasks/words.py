"""The most frequent words of a whole text (cwe and fwe of RULER, arXiv 2404.06654).

The answer is spread over the whole text, so that `depth` moves nothing. All words are coined and of
one length, so that none occurs inside another.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np

from ctxext.tasks.base import Example, SuiteLayout, SuiteOptions, Task, TaskContext, as_ids
from ctxext.tasks.building.placement import Frame, Insertion, place
from ctxext.tasks.building.value_lists import join_values, max_list_tokens, wrong_lists
from ctxext.tasks.building.vocabulary import distinct

DOTS = "..."
"""How the most frequent word of a coded text is written."""


@dataclass(frozen=True)
class CommonWords(Task):
    """A list in which `num_common` words are frequent and as many rare words as fit.

    The count of each word is up to a third more or less than stated. The list comes after an
    example drawn anew for each question. The score is the share of the common words that are
    written.
    """

    name: ClassVar[str] = "cwe"
    suite_layout: ClassVar[SuiteLayout] = "whole-text"
    num_common: int = 10
    """Different words that are frequent."""
    frequent: int = 30
    """About how often a frequent word occurs."""
    rare: int = 3
    """About how often any other word occurs."""
    shot: tuple[int, int, int] = (40, 10, 3)
    """The example before the list: its number of different words, and about how often frequent and
    rare ones occur."""
    max_new_tokens: int = 0

    def __post_init__(self) -> None:
        num_words, *shot_counts = self.shot
        if not 1 <= self.num_common < num_words:
            raise ValueError(
                f"cwe: num_common is {self.num_common}, the example has {num_words} words: "
                "give it more words"
            )
        for frequent, rare in ((self.frequent, self.rare), shot_counts):
            if not 0 < rare + rare // 3 < frequent - frequent // 3:
                raise ValueError(
                    f"cwe: about {frequent} and about {rare} times may be the same: "
                    "set them further apart"
                )

    @classmethod
    def for_length(cls, seq_len: int) -> "CommonWords":
        """RULER's settings: below 4096 tokens words occur 6 times and once, not 30 and 3 times."""
        if seq_len < 4096:
            return cls(frequent=6, rare=1, shot=(20, 3, 1), max_new_tokens=120)
        return cls(max_new_tokens=120)

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        return (cls.for_length(options.min_seq_len),)

    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        """As many rare words as fit in exactly `seq_len` tokens, answer included."""
        rng = context.rng
        num_common = self.num_common
        shot_words, shot_frequent, shot_rare = self.shot
        words = distinct(rng, "coined")
        start = context.encode("\nList:")
        question = context.encode(f"\nThe {num_common} words of the list that occur most often:")
        shot = WordCounts.encode(
            context,
            islice(words, shot_words),
            [
                *_about(rng, shot_frequent, num_common),
                *_about(rng, shot_rare, shot_words - num_common),
            ],
        )
        common = WordCounts.encode(
            context, islice(words, num_common), _about(rng, self.frequent, num_common)
        )
        before = [
            *start,
            *shot.ids_in_order(shot.shuffled(rng)),
            *question,
            *shot.answer(context, range(num_common)),
            *context.newline,
            *start,
        ]
        longest = max_list_tokens(context, common.ids + shot.ids, num_common)
        max_new_tokens = max(self.max_new_tokens, longest)
        fixed = len(context.bos) + len(before) + common.num_tokens + len(question) + max_new_tokens
        left = (seq_len or 0) - fixed
        rare = WordCounts([], [], [])
        for word in words:
            new = WordCounts.encode(context, [word], _about(rng, self.rare, 1))
            left -= new.num_tokens
            is_full = left < 0 if seq_len else len(rare.words) == num_common
            if rare.words and is_full:
                break
            for values, new_values in zip(rare, new, strict=True):
                values += new_values
        return _example(
            context,
            seq_len,
            common.joined(rare),
            range(num_common),
            Frame(max_new_tokens, head=before, tail=question),
            task=self.name,
            shot=shot.words,
        )


@dataclass(frozen=True)
class FrequentWords(Task):
    """As many words as fit, as frequent as 1 / rank**alpha; the first is written `...`.

    The `num_asked` next are asked for. There is one different word per 50 tokens, 10 at least; each
    frequency is up to a tenth more or less. The score is the share of the words that are written.
    """

    name: ClassVar[str] = "fwe"
    suite_layout: ClassVar[SuiteLayout] = "whole-text"
    num_asked: int = 3
    """Words that are asked for."""
    alpha: float = 2.0
    """The exponent: the word of rank r occurs in proportion to 1 / r**alpha."""
    max_new_tokens: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_asked <= 8 or self.alpha <= 0:
            raise ValueError(
                "fwe: num_asked is 1 to 8 and alpha positive, "
                f"not {self.num_asked} and {self.alpha}"
            )

    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        """As many words as fit in exactly `seq_len` tokens, answer included."""
        rng = context.rng
        num_asked = self.num_asked
        num_words = max(10, (seq_len or 0) // 50)
        start = context.encode("\nCoded text:")
        question = context.encode(
            f"\nThe {num_asked} words that occur most often in it, dots aside:"
        )
        coined = islice(distinct(rng, "coined"), num_words - 1)
        words = WordCounts.encode(context, [DOTS, *coined], [0] * num_words)
        share = np.arange(1, num_words + 1) ** -self.alpha * rng.uniform(0.9, 1.1, num_words)
        share /= share.sum()

        def with_total(total: int) -> WordCounts:
            counts = np.floor(total * share).astype(int)
            # The words asked for never tie with another.
            ceiling = max(0, counts[1 : num_asked + 1].min() - 1)
            counts[num_asked + 1 :] = np.minimum(counts[num_asked + 1 :], ceiling)
            return words._replace(counts=counts.tolist())

        longest = max_list_tokens(context, words.ids, num_asked)
        max_new_tokens = max(self.max_new_tokens, longest)
        fixed = len(context.bos) + len(start) + len(question) + max_new_tokens
        free = (seq_len or 0) - fixed
        totals = range(max(0, free))
        fits = bisect_right(totals, free, key=lambda total: with_total(total).num_tokens) - 1
        least = math.ceil(2 / share[1 : num_asked + 1].min())
        return _example(
            context,
            seq_len,
            with_total(max(fits, least)),
            range(1, num_asked + 1),
            Frame(max_new_tokens, head=start, tail=question),
            task=self.name,
            shot=(),
        )


class WordCounts(NamedTuple):
    """Words, the ids of each with a space before it, and how often each occurs."""

    words: list[str]
    ids: list[list[int]]
    counts: list[int]

    @classmethod
    def encode(
        cls, context: TaskContext, words: Iterable[str], counts: Sequence[int]
    ) -> "WordCounts":
        """Words with the ids of each and these counts."""
        words = list(words)
        return cls(words, [context.encode(f" {word}") for word in words], list(counts))

    def joined(self, other: "WordCounts") -> "WordCounts":
        """These words, then the others."""
        return WordCounts(
            self.words + other.words, self.ids + other.ids, self.counts + other.counts
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all occurrences."""
        return sum(count * len(ids) for count, ids in zip(self.counts, self.ids, strict=True))

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """The index of the word of every occurrence, in random order."""
        return rng.permutation(np.repeat(np.arange(len(self.words)), self.counts))

    def ids_in_order(self, order: Iterable[int]) -> list[int]:
        """The ids of the words of these indices, one after another."""
        return [token for i in order for token in self.ids[i]]

    def by_count(self, indices: Iterable[int]) -> list[int]:
        """`indices`, the most frequent word first."""
        return sorted(indices, key=lambda i: -self.counts[i])

    def answer(self, context: TaskContext, indices: Iterable[int]) -> list[int]:
        """The ids of those words, the most frequent first."""
        return join_values(context, [self.ids[i] for i in self.by_count(indices)])


def _about(rng: np.random.Generator, count: int, size: int) -> list[int]:
    """`size` numbers around `count`, up to a third more or less."""
    return rng.integers(count - count // 3, count + count // 3, size, endpoint=True).tolist()


def _example(
    context: TaskContext,
    seq_len: int | None,
    words: WordCounts,
    answer: Sequence[int],
    frame: Frame,
    *,
    task: str,
    shot: Sequence[str],
) -> Example:
    """The frame's head, the words in random order, the question; a little text first, to fill up.

    answer: indices of the words that are asked for; shot: the words of the example before it.
    """
    order = words.shuffled(context.rng)
    max_new_tokens = frame.reserved
    insertion = Insertion(1.0, [*frame.head, *words.ids_in_order(order)])
    placement = place(context, seq_len, [insertion], frame._replace(head=()), task=task)
    sizes = np.array([len(words.ids[i]) for i in order])
    starts = placement.starts[0] + len(frame.head) + np.cumsum(sizes) - sizes
    is_answer = np.isin(order, answer)
    spans = np.stack([starts, sizes], 1)[is_answer].tolist()
    gold = words.by_count(answer)
    wrong = [
        i
        for i, count in enumerate(words.counts)
        if count and i not in answer and words.words[i] != DOTS
    ]
    meta = {
        "needles": spans,
        "distance": len(placement.prompt) - spans[0][0],
        "haystack": placement.excerpts,
        "counts": [words.counts[i] for i in gold],
        "num_words": len(order),
    }
    wrong_ids = [words.ids[i] for i in wrong]
    return Example(
        placement.prompt,
        as_ids(words.answer(context, answer)),
        float(np.argmax(is_answer) / len(order)),
        meta,
        max_new_tokens,
        metric="all",
        references=tuple(words.words[i] for i in gold),
        distractors=(*(words.words[i] for i in wrong), *shot),
        choices=wrong_lists(context, wrong_ids, len(answer), max_new_tokens),
        stop_at_newline=True,
    )
