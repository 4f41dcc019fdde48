"""Needles that no repeated word gives away, by another overlap and a reader of words alone."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import Retrieval
from ctxext.evals.oracle import AnswerKey, EchoPrompt
from ctxext.tasks import Association, TaskContext
from ctxext.tasks.association import content_words, overlap
from ctxext.tasks.base import encode_fragment
from ctxext.tasks.building.implications import IMPLICATIONS, NAMES, QUESTION, SENTENCES
from support.toy_tokenizer import toy_documents, toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
HAYSTACK = toy_documents(TOKENIZER)
NEWLINE = encode_fragment(TOKENIZER, "\n")
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
SOURCE = toy_source()
PLAIN = Association()


def example(
    seed: int, seq_len: int | None, *, depth: float | None = None, task: Association = PLAIN
):
    context = TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)
    return task.example(context, seq_len, depth)


# The commonest function words of English, independent of the package's own list.
COMMON = set(
    """a an the this that it its is are was were be been has have had do does did who of in on at to
from for with without by as and or not cannot no one any every each over out off under behind before
until up down past both half full well great into there than then so such""".split()
)


def stems(text: str) -> set[str]:
    """The first four letters of each word, which most inflections and derivations share."""
    return {word[:4] for word in re.findall(r"[a-z]+", text.lower()) if word not in COMMON}


def test_no_question_shares_a_stem_with_any_needle_but_literal_ones_share_all():
    assert len(IMPLICATIONS) == len(set(IMPLICATIONS)) == 40
    for pair in IMPLICATIONS:
        for other in IMPLICATIONS:
            assert not stems(pair.consequence) & stems(other.fact), (pair, other)
        assert content_words(pair.fact) and content_words(pair.consequence)
        for sentence in SENTENCES:
            needle = sentence.format(name="Alina", fact=pair.fact)
            assert overlap(QUESTION.format(consequence=pair.consequence), needle) == 0
            assert overlap(QUESTION.format(consequence=pair.fact), needle) == 1


def test_no_name_is_part_of_another_or_of_a_sentence():
    assert len(NAMES) == len(set(NAMES))
    assert not any(a != b and a.lower() in b.lower() for a in NAMES for b in NAMES)
    text = " ".join(f"{pair.fact} {pair.consequence}" for pair in IMPLICATIONS).lower()
    assert not any(name.lower() in text for name in NAMES)


def sentences(text: str) -> dict[str, str]:
    """Name -> its sentence."""
    lines = (line.strip() for line in text.split("\n")[:-1])
    return {name: line for line in lines for name in NAMES if re.search(rf"\b{name}\b", line)}


@few
@given(
    seeds,
    st.integers(500, 2500) | st.none(),
    st.none() | st.floats(0, 1),
    st.booleans(),
    st.integers(1, 6),
)
def test_exact_to_the_token_with_the_needle_at_its_span(seed, seq_len, depth, literal, count):
    e = example(seed, seq_len, depth=depth, task=Association(count, literal))
    assert seq_len is None or len(e.prompt) + e.max_new_tokens == seq_len
    text = TOKENIZER.decode(e.prompt.tolist())
    sentence_of = sentences(text)
    assert len(sentence_of) == count
    # The haystack names nobody.
    assert set(sentence_of) == {*e.distractors, *e.references}
    ((start, size),) = e.meta["needles"]
    needle = TOKENIZER.decode(e.prompt[start : start + size].tolist()).strip()
    assert needle == sentence_of[e.meta["value"]]
    pair = IMPLICATIONS[e.meta["pair"]]
    assert pair.fact in needle
    predicate = pair.fact if literal else pair.consequence
    assert text.split("\n")[-1] == f"The person who {predicate} is called"
    assert e.meta["overlap"] == literal
    assert e.meta["distance"] == len(e.prompt) - start
    if depth is not None and seq_len is not None:
        size = sum(n for *_, n in e.meta["haystack"])
        assert abs(e.depth - depth) <= 0.501 / max(1, size)


@pytest.mark.parametrize(("literal", "low", "high"), [(True, 1, 1), (False, 0.15, 0.35)])
def test_a_reader_of_words_alone_solves_only_the_control(literal, low, high):
    """It names the person of the sentence that repeats most words of the question.

    By chance it is right for one question in four, of 400.
    """
    right = []
    for seed in range(400):
        e = example(seed, None, task=Association(literal=literal))
        text = TOKENIZER.decode(e.prompt.tolist())
        sentence_of = sentences(text)
        question = stems(text.split("\n")[-1]) - stems("person called")
        best = max(sorted(sentence_of), key=lambda name: len(stems(sentence_of[name]) & question))
        right.append(best == e.meta["value"])
    assert low <= np.mean(right) <= high


GRID = {"seq_lens": (500, 900), "depths": (0.0, 0.5, 1.0), "n": 3, "source": SOURCE}


@pytest.mark.parametrize(
    "task", [Association(), Association(literal=True), Association(num_needles=1)], ids=repr
)
@pytest.mark.parametrize("shared_context", [False, True])
def test_a_planted_answer_key_is_recovered(task, shared_context):
    evaluation = Retrieval(**GRID, task=task, shared_context=shared_context)
    key = AnswerKey.of(evaluation, TOKENIZER, manner=lambda ids: [*ids, *NEWLINE])
    num_choices = max(task.num_needles, 3 if shared_context else 1)
    for record in evaluation(key):
        assert record.scores.score == 1
        assert record.scores.choices == num_choices
        assert record.question.tokens <= record.seq_len
    for record in evaluation(dataclasses.replace(key, window=400)):
        reach = record.question.distance + len(record.question.gold) - 1
        assert record.scores.correct == (reach <= 400)
    assert not any(record.scores.correct for record in evaluation(EchoPrompt(TOKENIZER)))


def test_without_its_needle_the_name_does_not_occur():
    control = Retrieval(**GRID, task=Association(), condition="no-needle")
    for e in control.examples(TOKENIZER):
        assert set(sentences(TOKENIZER.decode(e.prompt.tolist()))) == set(e.distractors)


def test_bad_input():
    message = "association: a prompt of 60 tokens cannot hold 4 .* shortest is"
    with pytest.raises(ValueError, match=message):
        example(0, 60)
    with pytest.raises(ValueError, match="27 needles do not fit 26 names: ask for 1 to 26"):
        example(0, None, task=Association(27))
    with pytest.raises(ValueError, match="depth -1 is outside"):
        example(0, 900, depth=-1)
