"""Facts about a small world against a reader that was written apart: it knows the sentences, not the simulation."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import Retrieval
from ctxext.evals.oracle import AnswerKey, EchoPrompt
from ctxext.tasks import Facts, TaskContext
from ctxext.tasks.base import encode_fragment
from ctxext.tasks.building.scores import score
from ctxext.tasks.building.world import NUMBERS, PLACES
from support.toy_tokenizer import toy_documents, toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
HAYSTACK = toy_documents(TOKENIZER)
NEWLINE = encode_fragment(TOKENIZER, "\n")
KINDS = ("place", "object", "before", "relation", "count")
few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
SENTENCES = {
    "go": r"(\w+) (?:walked to|went over to|hurried to) the (\w+)\.",
    "take": r"(\w+) (?:picked up|took) the (\w+)\.",
    "leave": r"(\w+) (?:put down|left) the (\w+)(?: behind)?\.",
    "lies": r"Next to the (\w+), to the (\w+), is the (\w+)\.",
}


def read(text: str) -> list[tuple[str, ...]]:
    """The facts of a text in order."""
    found = []
    for line in text.split("\n"):
        for verb, pattern in SENTENCES.items():
            if match := re.fullmatch(pattern, line.strip()):
                found.append((verb, *match.groups()))
    return found


def answer(facts: list[tuple[str, ...]], question: str) -> str | None:
    """Replays the facts and answers; None where they do not say."""
    place, trail, bag = {}, {}, {}
    for verb, *what in facts:
        if verb == "go":
            person, where = what
            place[person] = where
            for thing in bag.get(person, []):
                trail.setdefault(thing, []).append(where)
        elif verb == "take":
            person, thing = what
            bag.setdefault(person, []).append(thing)
            if person in place and trail.get(thing, [None])[-1] != place[person]:
                trail.setdefault(thing, []).append(place[person])
        elif verb == "leave":
            person, thing = what
            if thing in bag.get(person, []):
                bag[person].remove(thing)
            if person in place and trail.get(thing, [None])[-1] != place[person]:
                trail.setdefault(thing, []).append(place[person])
    if match := re.match(r"Where is (?:the )?(\w+) now\?", question):
        name = match[1]
        return trail[name][-1] if name in trail else place.get(name)
    if match := re.match(r"Where was the (\w+) before it was in the (\w+)\?", question):
        path = trail.get(match[1], [])
        return path[path.index(match[2]) - 1] if match[2] in path[1:] else None
    if match := re.match(r"How many things does (\w+) carry now\?", question):
        return NUMBERS[len(bag.get(match[1], []))]
    if match := re.match(r"What is next to the (\w+), to the (\w+)\?", question):
        back = {"north": "south", "south": "north", "east": "west", "west": "east"}
        for _, anchor, way, other in facts:
            for known, direction, found in ((anchor, way, other), (other, back[way], anchor)):
                if (known, direction) == match.groups():
                    return found
    return None


def example(
    kind: str, seed: int, seq_len: int | None, depth: float | None = None, num_facts: int = 8
):
    task = Facts(kind, num_facts)
    context = TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)
    return task.example(context, seq_len, depth)


@few
@given(
    st.sampled_from(KINDS), seeds, st.integers(450, 2500) | st.none(), st.none() | st.floats(0, 1)
)
def test_the_text_says_the_answer_to_one_who_replays_it(kind, seed, seq_len, depth):
    asked = example(kind, seed, seq_len, depth)
    assert seq_len is None or len(asked.prompt) + asked.max_new_tokens == seq_len
    text = TOKENIZER.decode(asked.prompt.tolist())
    facts, question = read(text), text.split("\n")[-1]
    assert len(facts) == 8
    assert answer(facts, question) == asked.meta["value"] == asked.references[0]
    assert TOKENIZER.decode(asked.answer.tolist()).strip() == asked.meta["value"]
    needles = [TOKENIZER.decode(asked.prompt[a : a + n].tolist()) for a, n in asked.meta["needles"]]
    assert answer(read("\n".join(needles)), question) == asked.meta["value"]  # they suffice
    assert len(needles) == {"place": 1, "object": 2, "before": 3, "relation": 1}.get(
        kind, len(needles)
    )
    assert asked.meta["distance"] == max(asked.meta["distances"])
    if depth is not None and seq_len is not None:
        assert abs(asked.depth - depth) <= 0.501 / max(
            1, sum(n for *_, n in asked.meta["haystack"])
        )


@few
@given(st.sampled_from(KINDS), seeds)
def test_the_haystack_does_not_say_it(kind, seed):
    asked = example(kind, seed, 2000)
    around = " ".join(
        TOKENIZER.decode(HAYSTACK[d][s : s + n].tolist()) for d, s, n in asked.meta["haystack"]
    )
    assert asked.meta["value"] not in re.findall(r"\w+", around.lower())


def test_where_the_facts_are_is_a_sorted_draw():
    """Without a depth, the k-th of 8 facts is at k / 9 of the text on average, whichever fact is asked for."""
    starts = []
    for seed in range(200):
        asked = example("place", seed, 1500)
        ids = TOKENIZER.decode(asked.prompt.tolist())
        starts.append([match.start() / len(ids) for match in re.finditer(SENTENCES["go"], ids)])
    np.testing.assert_allclose(
        np.mean(starts, 0), np.arange(1, 9) / 9, atol=0.06
    )  # 4 standard errors: 0.045


def test_answers_are_spread_over_the_words_of_their_kind():
    for kind, words, least in (("place", PLACES, 8), ("object", PLACES, 8), ("count", NUMBERS, 4)):
        answers = [example(kind, seed, None).meta["value"] for seed in range(200)]
        counts = [answers.count(word) for word in words]
        assert sum(count > 4 for count in counts) >= least and max(counts) < 75, (kind, counts)


def test_right_is_the_word_and_no_other_of_its_kind_but_those_of_the_question():
    asked = example("before", 3, 700)
    named = re.search(r"in the (\w+)\?", TOKENIZER.decode(asked.prompt.tolist()).split("\n")[-1])[1]
    (right,), wrong = asked.references, [p for p in PLACES if p not in (asked.references[0], named)]
    assert sorted(asked.distractors) == sorted(wrong) and len(asked.choices) == len(wrong)
    assert (
        score(
            asked.metric, f" {right}, not the {named}", asked.references, labels=asked.distractors
        )
        == 1
    )
    assert (
        score(asked.metric, f" {right} or {wrong[0]}", asked.references, labels=asked.distractors)
        == 0
    )
    assert not any(a != b and a in b for a in PLACES for b in PLACES)
    assert not any(a != b and a in b for a in NUMBERS for b in NUMBERS)


GRID = {"seq_lens": (500, 900), "depths": (0.0, 0.5, 1.0), "n": 2, "source": toy_source()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_planted_reader_comes_back(kind):
    asked = Retrieval(**GRID, task=Facts(kind))
    key = AnswerKey.of(asked, TOKENIZER, manner=lambda ids: [*ids, *NEWLINE])
    assert all(row.scores.score == 1 and row.question.tokens == row.seq_len for row in asked(key))
    for row in asked(dataclasses.replace(key, window=400)):
        assert row.scores.correct == (row.question.distance + len(row.question.gold) - 1 <= 400)
    assert not any(row.scores.correct for row in asked(EchoPrompt(TOKENIZER)))


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_needles_the_text_does_not_say_it(kind):
    task, right = Facts(kind), 0
    control = Retrieval(**{**GRID, "n": 20, "seq_lens": (700,)}, task=task, condition="no-needle")
    for asked in control.examples(TOKENIZER):
        text = TOKENIZER.decode(asked.prompt.tolist())
        right += answer(read(text), text.split("\n")[-1]) == asked.meta["value"]
    assert right <= (
        25 if kind == "count" else 3
    )  # of 60; a quarter carries nothing, and so does who is not named


@pytest.mark.parametrize(
    ("kind", "few", "most"),
    [("place", 1, 40), ("object", 2, 40), ("before", 3, 40), ("relation", 1, 9), ("count", 1, 40)],
)
def test_how_many_facts_there_can_be(kind, few, most):
    for count in (few, most):
        assert (
            len(read(TOKENIZER.decode(example(kind, 1, None, num_facts=count).prompt.tolist())))
            == count
        )
    with pytest.raises(ValueError, match="facts: "):
        example(kind, 1, None, num_facts=few - 1)


def test_bad_input():
    with pytest.raises(
        ValueError, match="facts, place: a prompt of 60 tokens cannot hold 8 .* shortest is"
    ):
        example("place", 0, 60)
    with pytest.raises(ValueError, match="'time' is not known; choose one of place, object"):
        Facts("time")  # pyright: ignore
    with pytest.raises(ValueError, match="depth 1.5 is outside"):
        example("place", 0, 900, 1.5)
    with pytest.raises(ValueError, match="has 1 to 9 facts, not 10"):
        example("relation", 0, None, num_facts=10)
