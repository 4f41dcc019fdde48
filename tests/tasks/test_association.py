"""Needles that no repeated word gives away: overlap measured by other means, and a reader that goes by words alone."""

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


# The commonest words of English that carry no matter, written down apart from the package's own list.
COMMON = set(
    """a an the this that it its is are was were be been has have had do does did who of in on at to from for
with without by as and or not cannot no one any every each over out off under behind before until up down past both
half full well great into there than then so such""".split()
)


def stems(text: str) -> set[str]:
    """First four letters: nearly every inflection and derivation of a word falls together."""
    return {word[:4] for word in re.findall(r"[a-z]+", text.lower()) if word not in COMMON}


def test_no_question_shares_a_stem_with_any_needle_but_literal_ones_share_all():
    assert len(IMPLICATIONS) == len(set(IMPLICATIONS)) == 40
    for pair in IMPLICATIONS:
        for other in IMPLICATIONS:
            assert not stems(pair.consequence) & stems(other.fact), (pair, other)
        assert content_words(pair.fact) and content_words(pair.consequence)
        for form in SENTENCES:
            needle = form.format(name="Alina", fact=pair.fact)
            assert overlap(QUESTION.format(consequence=pair.consequence), needle) == 0
            assert overlap(QUESTION.format(consequence=pair.fact), needle) == 1


def test_names_are_told_apart():
    assert len(NAMES) == len(set(NAMES)) and not any(
        a != b and a.lower() in b.lower() for a in NAMES for b in NAMES
    )
    said = " ".join(pair.fact + " " + pair.consequence for pair in IMPLICATIONS)
    assert not any(name.lower() in said.lower() for name in NAMES)


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
def test_exact_to_the_token_with_the_needle_where_it_is_said_to_be(
    seed, seq_len, depth, literal, count
):
    asked = example(seed, seq_len, depth=depth, task=Association(count, literal))
    assert seq_len is None or len(asked.prompt) + asked.max_new_tokens == seq_len
    text = TOKENIZER.decode(asked.prompt.tolist())
    said = sentences(text)
    assert len(said) == count and set(said) == {
        *asked.distractors,
        *asked.references,
    }  # and the haystack names nobody
    ((start, size),) = asked.meta["needles"]
    needle = TOKENIZER.decode(asked.prompt[start : start + size].tolist()).strip()
    assert needle == said[asked.meta["value"]]
    pair = IMPLICATIONS[asked.meta["pair"]]
    assert pair.fact in needle
    assert (
        text.split("\n")[-1]
        == f"The person who {pair.fact if literal else pair.consequence} is called"
    )
    assert asked.meta["overlap"] == literal
    assert asked.meta["distance"] == len(asked.prompt) - start
    if depth is not None and seq_len is not None:
        assert abs(asked.depth - depth) <= 0.501 / max(
            1, sum(n for *_, n in asked.meta["haystack"])
        )


@pytest.mark.parametrize(("literal", "low", "high"), [(True, 1, 1), (False, 0.15, 0.35)])
def test_a_reader_of_words_alone_has_all_of_the_control_and_guesses_the_rest(literal, low, high):
    """Names who stands in the sentence that repeats most words of the question: one of four by chance, of 400."""
    right = []
    for seed in range(400):
        asked = example(seed, None, task=Association(literal=literal))
        text = TOKENIZER.decode(asked.prompt.tolist())
        said, question = sentences(text), stems(text.split("\n")[-1])
        best = max(
            sorted(said),
            key=lambda name: len(stems(said[name]) & question - stems("person called")),
        )
        right.append(best == asked.meta["value"])
    assert low <= np.mean(right) <= high


GRID = {"seq_lens": (500, 900), "depths": (0.0, 0.5, 1.0), "n": 3, "source": SOURCE}


@pytest.mark.parametrize(
    "task", [Association(), Association(literal=True), Association(num_needles=1)], ids=repr
)
@pytest.mark.parametrize("shared_context", [False, True])
def test_the_planted_reader_comes_back(task, shared_context):
    asked = Retrieval(**GRID, task=task, shared_context=shared_context)
    key = AnswerKey.of(asked, TOKENIZER, manner=lambda ids: [*ids, *NEWLINE])
    assert all(row.scores.score == 1 and row.question.tokens <= row.seq_len for row in asked(key))
    for row in asked(dataclasses.replace(key, window=400)):
        assert row.scores.correct == (row.question.distance + len(row.question.gold) - 1 <= 400)
    assert not any(row.scores.correct for row in asked(EchoPrompt(TOKENIZER)))
    assert {row.scores.choices for row in asked(key)} == {
        max(task.num_needles, 3 if shared_context else 1)
    }


def test_without_its_needle_the_name_is_nowhere():
    control = Retrieval(**GRID, task=Association(), condition="no-needle")
    for asked in control.examples(TOKENIZER):
        assert set(sentences(TOKENIZER.decode(asked.prompt.tolist()))) == set(asked.distractors)


def test_bad_input():
    with pytest.raises(
        ValueError, match="association: a prompt of 60 tokens cannot hold 4 .* shortest is"
    ):
        example(0, 60)
    with pytest.raises(ValueError, match="27 needles do not fit 26 names: ask for 1 to 26"):
        example(0, None, task=Association(27))
    with pytest.raises(ValueError, match="depth -1 is outside"):
        example(0, 900, depth=-1)
