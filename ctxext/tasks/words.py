"""Counting words over a whole text: which occur most often (RULER's cwe and fwe, arXiv 2404.06654).

What is asked for is everywhere, so that `depth` moves nothing. All words are coined and of one length, so that none
is found inside another.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, Task, beginning, encode_piece
from ctxext.tasks.building.needles import listed, longest_list, wrong_lists
from ctxext.tasks.building.placement import place
from ctxext.tasks.building.vocabulary import distinct

DOTS = "..."
"""What the most frequent word of a coded text is written as."""


@dataclass(frozen=True)
class CommonWords(Task):
    """A list in which `num_common` words occur about `frequent` times and as many others as fit about `rare` times.

    Each word has a count of its own, up to a third more or less. Before it stands an example that is drawn anew for
    each question: `shot` is its number of different words and about how often they occur. The score is the share of
    words found; `room` tokens are kept for them at least.
    """

    name: ClassVar[str] = "cwe"
    num_common: int = 10
    frequent: int = 30
    rare: int = 3
    shot: tuple[int, int, int] = (40, 10, 3)
    room: int = 0

    def __post_init__(self) -> None:
        words, *shot = self.shot
        if not 1 <= self.num_common < words:
            raise ValueError(
                f"cwe: num_common is {self.num_common}, the example has {words} words: give it more words"
            )
        for often, seldom in ((self.frequent, self.rare), shot):
            if not 0 < seldom + seldom // 3 < often - often // 3:
                raise ValueError(
                    f"cwe: about {often} and about {seldom} times may be the same: set them further apart"
                )

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """As many rare words as fit in exactly `seq_len` tokens, room for the answer included."""
        K, (shown, often, seldom) = self.num_common, self.shot
        words = distinct(rng, "coined")
        start = encode_piece(tokenizer, "\nList:")
        question = encode_piece(tokenizer, f"\nThe {K} words of the list that occur most often:")
        shot = Words.of(
            tokenizer,
            islice(words, shown),
            [*_about(rng, often, K), *_about(rng, seldom, shown - K)],
        )
        common = Words.of(tokenizer, islice(words, K), _about(rng, self.frequent, K))
        before = [
            *start,
            *shot.text(shot.shuffled(rng)),
            *question,
            *shot.answer(tokenizer, range(K)),
            *encode_piece(tokenizer, "\n"),
            *start,
        ]
        room = max(self.room, longest_list(tokenizer, common.ids + shot.ids, K))
        others = Words([], [], [])
        left = (
            (seq_len or 0)
            - len(beginning(tokenizer))
            - len(before)
            - common.size
            - len(question)
            - room
        )
        for word in words:
            more = Words.of(tokenizer, [word], _about(rng, self.rare, 1))
            left -= more.size
            if others.words and (left < 0 if seq_len else len(others.words) == K):
                break
            for field, new in zip(others, more, strict=True):
                field += new
        return _example(
            rng,
            tokenizer,
            seq_len,
            common.joined(others),
            range(K),
            before=before,
            question=question,
            room=room,
            shot=shot.words,
            task=self.name,
            haystack=haystack,
        )


@dataclass(frozen=True)
class FrequentWords(Task):
    """Words as frequent as 1 / rank**alpha, as many as fit; the first is written `...`, the `num_asked` next are asked.

    One different word for 50 tokens (10 at least), each with a frequency of its own, up to a tenth more or less. The
    score is the share of words found; `room` tokens are kept for them at least.
    """

    name: ClassVar[str] = "fwe"
    num_asked: int = 3
    alpha: float = 2.0
    room: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_asked <= 8 or self.alpha <= 0:
            raise ValueError(
                f"fwe: num_asked is 1 to 8 and alpha positive, not {self.num_asked} and {self.alpha}"
            )

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """As many words as fit in exactly `seq_len` tokens, room for the answer included."""
        K, different = self.num_asked, max(10, (seq_len or 0) // 50)
        start = encode_piece(tokenizer, "\nCoded text:")
        question = encode_piece(
            tokenizer, f"\nThe {K} words that occur most often in it, dots aside:"
        )
        words = Words.of(
            tokenizer, [DOTS, *islice(distinct(rng, "coined"), different - 1)], [0] * different
        )
        share = np.arange(1, different + 1) ** -self.alpha * rng.uniform(0.9, 1.1, different)
        share /= share.sum()

        def counted(total: int) -> Words:
            counts = np.floor(total * share).astype(int)
            most = max(0, counts[1 : K + 1].min() - 1)  # what is asked for is never in a tie
            return words._replace(
                counts=[*counts[: K + 1].tolist(), *np.minimum(counts[K + 1 :], most).tolist()]
            )

        room = max(self.room, longest_list(tokenizer, words.ids, K))
        budget = (seq_len or 0) - len(beginning(tokenizer)) - len(start) - len(question) - room
        fits = (
            bisect_right(range(max(0, budget)), budget, key=lambda total: counted(total).size) - 1
        )
        least = math.ceil(2 / share[1 : K + 1].min())
        return _example(
            rng,
            tokenizer,
            seq_len,
            counted(max(fits, least)),
            range(1, K + 1),
            before=start,
            question=question,
            room=room,
            shot=(),
            task=self.name,
            haystack=haystack,
        )


class Words(NamedTuple):
    """Words, the ids of each with a space before it, and how often each occurs."""

    words: list[str]
    ids: list[list[int]]
    counts: list[int]

    @classmethod
    def of(cls, tokenizer: Encoder, words: Iterable[str], counts: Sequence[int]) -> "Words":
        words = list(words)
        return cls(words, [encode_piece(tokenizer, f" {word}") for word in words], list(counts))

    def joined(self, other: "Words") -> "Words":
        return Words(self.words + other.words, self.ids + other.ids, self.counts + other.counts)

    @property
    def size(self) -> int:
        """How many tokens they are, each as often as it occurs."""
        return sum(count * len(ids) for count, ids in zip(self.counts, self.ids, strict=True))

    def shuffled(self, rng: np.random.Generator) -> np.ndarray:
        """The place of every occurrence's word, in a random order."""
        return rng.permutation(np.repeat(np.arange(len(self.words)), self.counts))

    def text(self, order: Iterable[int]) -> list[int]:
        return [token for i in order for token in self.ids[i]]

    def falling(self, asked: Iterable[int]) -> list[int]:
        return sorted(asked, key=lambda i: -self.counts[i])

    def answer(self, tokenizer: Encoder, asked: Iterable[int]) -> list[int]:
        """The asked words, the most frequent first."""
        return listed(tokenizer, [self.ids[i] for i in self.falling(asked)])


def _about(rng: np.random.Generator, count: int, size: int) -> list[int]:
    return rng.integers(count - count // 3, count + count // 3, size, endpoint=True).tolist()


def _example(
    rng: np.random.Generator,
    tokenizer: Encoder,
    seq_len: int | None,
    words: Words,
    asked: Sequence[int],
    *,
    before: Sequence[int],
    question: Sequence[int],
    room: int,
    shot: Sequence[str],
    task: str,
    haystack: Haystack,
) -> Example:
    """`before`, the words in a random order, `question`; a few tokens of text come first, to fill up."""
    order = words.shuffled(rng)
    piece = [*before, *words.text(order)]
    placed = place(
        rng,
        tokenizer,
        seq_len,
        [(1.0, piece)],
        task=task,
        tail=question,
        room=room,
        haystack=haystack,
    )
    sizes = np.array([len(words.ids[i]) for i in order])
    starts = placed.starts[0] + len(before) + np.cumsum(sizes) - sizes
    needed = np.isin(order, asked)
    spans = np.stack([starts, sizes], 1)[needed].tolist()
    gold = words.falling(asked)
    others = [
        i
        for i, count in enumerate(words.counts)
        if count and i not in asked and words.words[i] != DOTS
    ]
    meta = {
        "needles": spans,
        "distance": len(placed.prompt) - spans[0][0],
        "haystack": placed.haystack,
        "counts": [words.counts[i] for i in gold],
        "num_words": len(order),
    }
    return Example(
        placed.prompt,
        np.asarray(words.answer(tokenizer, asked), np.int32),
        float(np.argmax(needed) / len(order)),
        meta,
        metric="all",
        references=tuple(words.words[i] for i in gold),
        decoys=(*(words.words[i] for i in others), *shot),
        choices=wrong_lists(rng, tokenizer, [words.ids[i] for i in others], len(asked), room),
        room=room,
        line=True,
    )
