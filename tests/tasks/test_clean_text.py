"""Haystack text without the answer: it never mentions it, and nothing else changes."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.tasks.base import TaskContext, draw_haystack
from ctxext.tasks.building.clean_text import draw_without, mention_pattern, mentions
from support.toy_tokenizer import toy_documents, toy_texts, toy_tokenizer

TOKENIZER = toy_tokenizer()
HAYSTACK = toy_documents(TOKENIZER)
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def context(seed: int, haystack=HAYSTACK) -> TaskContext:
    return TaskContext(np.random.default_rng(seed), TOKENIZER, haystack)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@few
@given(
    seeds,
    st.integers(0, 6000),
    st.sampled_from([["argument"], ["raise", "Namespace"], ["the parser", "return value"]]),
)
def test_no_forbidden_word_is_left_and_the_excerpts_are_the_text(seed, count, forbidden):
    text, excerpts = draw_without(context(seed), count, forbidden)
    assert text.dtype == np.int32
    assert len(text) == count
    assert text.tolist() == [i for d, s, n in excerpts for i in HAYSTACK[d][s : s + n].tolist()]
    joined = " ".join(words(TOKENIZER.decode(text.tolist())))
    assert not any(f" {string.lower()} " in f" {joined} " for string in forbidden)


@few
@given(seeds, st.integers(0, 6000))
def test_text_without_a_mention_is_left_as_it_is(seed, count):
    clean, excerpts = draw_without(context(seed), count, ["Winifred"])
    text, expected_excerpts = draw_haystack(np.random.default_rng(seed), HAYSTACK, count)
    assert clean.tolist() == text.tolist()
    assert excerpts == expected_excerpts


def test_a_haystack_of_nothing_but_the_answer_is_refused():
    documents = [np.asarray(TOKENIZER.encode("Paris " * 500), np.int32)]
    with pytest.raises(ValueError, match="the haystack mentions 'Paris' all over"):
        draw_without(context(0, documents), 900, ["Paris"])


def test_whole_words_are_matched_in_either_case_across_any_separator():
    assert mentions("in New\n  york.", ["New York"])
    assert mentions("two-thirds", ["Two thirds"])
    assert mentions("it is 5 €", ["5 €"])
    assert mentions("(Art)", ["art"])
    assert not mentions("a party", ["art"])
    assert not mentions("art of war", ["arts"])
    assert not mentions("anything", [])
    whole = "\n".join(toy_texts())
    for string in ("value", "self._actions", "no such thing"):
        assert mentions(whole, [string]) == (mention_pattern([string]).search(whole) is not None)
