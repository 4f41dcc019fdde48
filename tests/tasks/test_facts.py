"""Facts about a small world, read by an independent reader that knows only the sentences."""

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
    facts = []
    for line in text.split("\n"):
        for verb, pattern in SENTENCES.items():
            match = re.fullmatch(pattern, line.strip())
            if match:
                facts.append((verb, *match.groups()))
    return facts


def answer(facts: list[tuple[str, ...]], question: str) -> str | None:
    """The answer after replaying the facts; None where they do not decide it."""
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
            for known, direction, neighbour in ((anchor, way, other), (other, back[way], anchor)):
                if (known, direction) == match.groups():
                    return neighbour
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
def test_replaying_the_text_gives_the_answer(kind, seed, seq_len, depth):
    e = example(kind, seed, seq_len, depth)
    assert seq_len is None or len(e.prompt) + e.max_new_tokens == seq_len
    text = TOKENIZER.decode(e.prompt.tolist())
    facts = read(text)
    question = text.split("\n")[-1]
    assert len(facts) == 8
    assert answer(facts, question) == e.meta["value"] == e.references[0]
    assert TOKENIZER.decode(e.answer.tolist()).strip() == e.meta["value"]
    needles = [TOKENIZER.decode(e.prompt[a : a + n].tolist()) for a, n in e.meta["needles"]]
    assert answer(read("\n".join(needles)), question) == e.meta["value"]  # they suffice
    if kind != "count":
        assert len(needles) == {"place": 1, "object": 2, "before": 3, "relation": 1}[kind]
    assert e.meta["distance"] == max(e.meta["distances"])
    if depth is not None and seq_len is not None:
        size = sum(n for *_, n in e.meta["haystack"])
        assert abs(e.depth - depth) <= 0.501 / max(1, size)


@few
@given(st.sampled_from(KINDS), seeds)
def test_the_haystack_does_not_mention_the_answer(kind, seed):
    e = example(kind, seed, 2000)
    around = " ".join(
        TOKENIZER.decode(HAYSTACK[d][s : s + n].tolist()) for d, s, n in e.meta["haystack"]
    )
    assert e.meta["value"] not in re.findall(r"\w+", around.lower())


def test_the_depths_of_facts_are_a_sorted_draw():
    """Without a depth, the k-th of 8 facts is at k / 9 of the text on average."""
    starts = []
    for seed in range(200):
        e = example("place", seed, 1500)
        text = TOKENIZER.decode(e.prompt.tolist())
        starts.append([match.start() / len(text) for match in re.finditer(SENTENCES["go"], text)])
    # 4 standard errors: 0.045
    np.testing.assert_allclose(np.mean(starts, 0), np.arange(1, 9) / 9, atol=0.06)


def test_answers_are_spread_over_the_words_of_their_kind():
    for kind, words, least in (("place", PLACES, 8), ("object", PLACES, 8), ("count", NUMBERS, 4)):
        answers = [example(kind, seed, None).meta["value"] for seed in range(200)]
        counts = [answers.count(word) for word in words]
        assert sum(count > 4 for count in counts) >= least and max(counts) < 75, (kind, counts)


def test_only_the_answer_and_words_of_the_question_may_be_written():
    e = example("before", 3, 700)
    question = TOKENIZER.decode(e.prompt.tolist()).split("\n")[-1]
    named = re.search(r"in the (\w+)\?", question)[1]
    (right,) = e.references
    wrong = [place for place in PLACES if place not in (right, named)]

    def score_of(text: str) -> float:
        return score(e.metric, text, e.references, labels=e.distractors)

    assert sorted(e.distractors) == sorted(wrong)
    assert len(e.choices) == len(wrong)
    assert score_of(f" {right}, not the {named}") == 1
    assert score_of(f" {right} or {wrong[0]}") == 0
    assert not any(a != b and a in b for a in PLACES for b in PLACES)
    assert not any(a != b and a in b for a in NUMBERS for b in NUMBERS)


GRID = {"seq_lens": (500, 900), "depths": (0.0, 0.5, 1.0), "n": 2, "source": toy_source()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_answer_key_is_recovered(kind):
    evaluation = Retrieval(**GRID, task=Facts(kind))
    key = AnswerKey.of(evaluation, TOKENIZER, manner=lambda ids: [*ids, *NEWLINE])
    for record in evaluation(key):
        assert record.scores.score == 1
        assert record.question.tokens == record.seq_len
    for record in evaluation(dataclasses.replace(key, window=400)):
        reach = record.question.distance + len(record.question.gold) - 1
        assert record.scores.correct == (reach <= 400)
    assert not any(record.scores.correct for record in evaluation(EchoPrompt(TOKENIZER)))


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_needles_the_text_does_not_give_the_answer(kind):
    task = Facts(kind)
    right = 0
    control = Retrieval(**{**GRID, "n": 20, "seq_lens": (700,)}, task=task, condition="no-needle")
    for e in control.examples(TOKENIZER):
        text = TOKENIZER.decode(e.prompt.tolist())
        right += answer(read(text), text.split("\n")[-1]) == e.meta["value"]
    # Of 60; a quarter carry nothing, and so does a person who is not named.
    assert right <= (25 if kind == "count" else 3)


@pytest.mark.parametrize(
    ("kind", "few", "most"),
    [("place", 1, 40), ("object", 2, 40), ("before", 3, 40), ("relation", 1, 9), ("count", 1, 40)],
)
def test_how_many_facts_there_can_be(kind, few, most):
    for count in (few, most):
        prompt = example(kind, 1, None, num_facts=count).prompt
        assert len(read(TOKENIZER.decode(prompt.tolist()))) == count
    with pytest.raises(ValueError, match="facts: "):
        example(kind, 1, None, num_facts=few - 1)


def test_bad_input():
    message = "facts, place: a prompt of 60 tokens cannot hold 8 .* shortest is"
    with pytest.raises(ValueError, match=message):
        example("place", 0, 60)
    with pytest.raises(ValueError, match="'time' is not known; choose one of place, object"):
        Facts("time")  # pyright: ignore
    with pytest.raises(ValueError, match="depth 1.5 is outside"):
        example("place", 0, 900, 1.5)
    with pytest.raises(ValueError, match="has 1 to 9 facts, not 10"):
        example("relation", 0, None, num_facts=10)
