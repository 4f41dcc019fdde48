"""Haystack text without the answer: read word by word it never says it, and nothing else changes."""

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


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@few
@given(
    seeds,
    st.integers(0, 6000),
    st.sampled_from([["argument"], ["raise", "Namespace"], ["the parser", "return value"]]),
)
def test_no_forbidden_word_is_left_and_the_pieces_are_the_text(seed, count, forbidden):
    context = TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)
    text, pieces = draw_without(context, count, forbidden)
    assert text.dtype == np.int32 and len(text) == count
    assert text.tolist() == [i for d, s, n in pieces for i in HAYSTACK[d][s : s + n].tolist()]
    said = " ".join(words(TOKENIZER.decode(text.tolist())))
    assert not any(f" {string.lower()} " in f" {said} " for string in forbidden)


@few
@given(seeds, st.integers(0, 6000))
def test_text_that_does_not_say_it_is_the_same_as_ever(seed, count):
    context = TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)
    clean, pieces = draw_without(context, count, ["Winifred"])
    text, same = draw_haystack(np.random.default_rng(seed), HAYSTACK, count)
    assert clean.tolist() == text.tolist() and pieces == same


def test_a_haystack_of_nothing_but_the_answer_is_refused():
    said = [np.asarray(TOKENIZER.encode("Paris " * 500), np.int32)]
    with pytest.raises(ValueError, match="the haystack mentions 'Paris' all over"):
        draw_without(TaskContext(np.random.default_rng(0), TOKENIZER, said), 900, ["Paris"])


def test_words_count_as_wholes_in_either_case_whatever_is_between_them():
    assert (
        mentions("in New\n  york.", ["New York"])
        and mentions("two-thirds", ["Two thirds"])
        and mentions("it is 5 €", ["5 €"])
        and mentions("(Art)", ["art"])
    )
    assert (
        not mentions("a party", ["art"])
        and not mentions("art of war", ["arts"])
        and not mentions("anything", [])
    )
    whole = "\n".join(toy_texts())
    for string in ("value", "self._actions", "no such thing"):
        assert mentions(whole, [string]) == (mention_pattern([string]).search(whole) is not None)
