"""Passages to rank by how much of a query they match, by their ids (HELMET's re-ranking)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np

from ctxext.tasks.base import Example, SharedContextTask, SuiteLayout, TaskContext
from ctxext.tasks.building.line_questions import (
    AskedLines,
    LineQuestion,
    ask_lines,
    order_lines,
)
from ctxext.tasks.building.placement import lines_that_fit
from ctxext.tasks.building.structured_scores import RANKS
from ctxext.tasks.building.vocabulary import ADJECTIVES, NOUNS, PLACES

GRADES = (3, 2, 2, 1, 1)
"""Matching properties of the relevant passages of a query."""
MAX_ID = 9999
PASSAGES_WITHOUT_LENGTH = 4
"""Further passages where no length is given."""


class Find(NamedTuple):
    """What was found where: an adjective, a noun and a place."""

    adjective: str
    noun: str
    place: str

    def __str__(self) -> str:
        return f"{self.adjective} {self.noun} at the {self.place}"


@dataclass(frozen=True)
class Rerank(SharedContextTask):
    """As many passages with ids as fit, of which a query's are to be ranked by relevance.

    A query names an adjective, a noun and a place; a passage has as many of them as its grade says:
    one has all three (at the depth), two have two, two have one, and all others none. The answer is
    the ids of the five, the best first, `417 > 28 > 903 > 5 > 77`; the order among equals does not
    matter. Ids are random. The score is NDCG@10 with these grades, as HELMET scores MS MARCO
    (arXiv 2410.02694); a random order of all N passages scores about 7 / N, which a record notes
    exactly as `chance_score`. `shots` worked examples about the text come before the question.
    """

    name: ClassVar[str] = "rerank"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    shots: int = 2
    """Worked examples before the question."""

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ValueError(f"{self.name}: shots must be at least 0")

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A best passage at each depth and a query for each; all others are anywhere."""
        rng = context.rng
        num_queries = len(depths) + self.shots
        words = _Words.draw(rng, num_queries, self.name)
        found = [find for query in words.queries for find in words.matching(rng, query)]
        ids = rng.permutation(np.arange(1, MAX_ID + 1)).tolist()
        passages = [_passage(context, name, find) for name, find in zip(ids, found, strict=False)]
        room = len(_ranking(context, [MAX_ID] * RANKS))
        query_ids = [context.encode(f"\n\nQuery: {query}\nRanking:") for query in words.queries]
        rankings = [
            _ranking(context, ids[i : i + len(GRADES)]) for i in range(0, len(found), len(GRADES))
        ]
        shown = zip(query_ids[len(depths) :], rankings[len(depths) :], strict=True)
        tail = [token for query, ranking in shown for token in query + ranking]
        more = self._irrelevant(context, words, ids[len(found) :])
        if seq_len is None:
            passages += islice(more, PASSAGES_WITHOUT_LENGTH)
        else:
            used = len(context.bos) + len(tail) + max(map(len, query_ids)) + room
            passages += lines_that_fit(more, seq_len - used - sum(map(len, passages)), len)
        best = [i * len(GRADES) for i in range(len(depths))]
        at_depth = {i: context.draw_depth(depth) for i, depth in zip(best, depths, strict=True)}
        order = order_lines(
            context, len(passages), {} if seq_len is None else at_depth, task=self.name
        )
        questions = []
        for i in best:
            own = range(i, i + len(GRADES))
            facts = {
                "name": str(words.queries[i // len(GRADES)]),
                "num_passages": len(passages),
                "chance_score": chance_ndcg(len(passages)),
            }
            question = LineQuestion(
                query_ids[i // len(GRADES)],
                rankings[i // len(GRADES)],
                [order.index(passage) for passage in own],
                [
                    str(ids[passage])
                    for passage, grade in zip(own, GRADES, strict=True)
                    for _ in range(grade)
                ],
                choices=[_ranking(context, ids[i : i + len(GRADES)][::-1])],
                facts=facts,
            )
            questions.append(question)
        how = AskedLines(self.name, "ndcg@10", room, tail)
        return ask_lines(context, seq_len, [passages[i] for i in order], questions, how)

    def _irrelevant(
        self, context: TaskContext, words: "_Words", ids: Sequence[int]
    ) -> Iterator[list[int]]:
        for name in ids:
            find = Find(*(str(context.rng.choice(others)) for others in words.others))
            yield _passage(context, name, find)
        raise ValueError(
            f"{self.name}: there are ids for {MAX_ID:,} passages, and the text holds more: ask for "
            "a shorter one"
        )


class _Words(NamedTuple):
    """Queries that share no word, and the words of no query: adjectives, nouns, places."""

    queries: list[Find]
    others: list[list[str]]

    @classmethod
    def draw(cls, rng: np.random.Generator, num_queries: int, task: str) -> "_Words":
        most = len(PLACES) - len(GRADES)
        if num_queries > most:
            raise ValueError(f"{task}: ask for at most {most} queries about a text")
        columns = [rng.permutation(words).tolist() for words in (ADJECTIVES, NOUNS, PLACES)]
        queries = [Find(*(column[i] for column in columns)) for i in range(num_queries)]
        return cls(queries, [column[num_queries:] for column in columns])

    def matching(self, rng: np.random.Generator, query: Find) -> list[Find]:
        """A passage for each of `GRADES`; those of a grade match in different properties."""
        finds = []
        kept_of: dict[int, Iterator[int]] = {}
        for grade in GRADES:
            alone = kept_of.setdefault(grade, iter(rng.permutation(3).tolist()))
            chosen = next(alone)
            # Of grade 2, the chosen property is the one that differs.
            kept = {3: {0, 1, 2}, 2: {0, 1, 2} - {chosen}, 1: {chosen}}[grade]
            words = [query[i] if i in kept else str(rng.choice(self.others[i])) for i in range(3)]
            finds.append(Find(*words))
        return finds


def chance_ndcg(num_passages: int) -> float:
    """The expected NDCG@10 of a random order of all passages, for one query."""
    discounts = 1 / np.log2(np.arange(2, RANKS + 2))
    ideal = float(np.dot(GRADES, discounts[: len(GRADES)]))
    ranked = discounts[:num_passages]
    return sum(GRADES) / num_passages * float(ranked.sum()) / ideal


def _passage(context: TaskContext, name: int, find: Find) -> list[int]:
    return context.encode(f"\n[{name}] What was found: the {find}.")


def _ranking(context: TaskContext, ids: Sequence[int]) -> list[int]:
    return context.encode(" " + " > ".join(map(str, ids)))
