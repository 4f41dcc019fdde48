"""Scores of published benchmarks against the authors' own scorers on random strings."""

import json
import re
import sys
import tracemalloc
from pathlib import Path

import pytest

from ctxext.tasks.building import published_scores
from ctxext.tasks.building.chinese_words import chinese_words, has_segmenter
from ctxext.tasks.building.published_scores import PUBLISHED_SCORES
from ctxext.tasks.building.rouge import has_stemmer, porter_stem
from ctxext.tasks.building.scores import METRICS, score

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "published_scores.json").read_text())
WORDS = json.loads((GOLDEN / "published_words.json").read_text())


@pytest.fixture(autouse=True)
def recorded_words(monkeypatch):
    """What jieba and nltk make of the strings, which are no dependencies of the tests."""
    monkeypatch.setattr(published_scores, "chinese_words", WORDS["chinese_words"].__getitem__)
    stem = WORDS["stems"].__getitem__
    monkeypatch.setattr(published_scores, "porter_stem", lambda: stem)


@pytest.mark.parametrize("metric", CASES)
def test_every_score_is_the_authors(metric):
    cases = CASES[metric]
    different = [
        (text, references, labels, right)
        for text, references, labels, right in cases
        if score(metric, text, references, labels=labels) != pytest.approx(right)
    ]
    assert not different
    assert len(cases) >= 40
    assert 0 < sum(right for *_, right in cases) < len(cases)


def test_no_published_score_is_untested():
    assert set(PUBLISHED_SCORES) <= set(CASES) <= set(METRICS)


def test_recorded_words_are_whole_texts_and_stems_are_shorter():
    assert all("".join(words) == text for text, words in WORDS["chinese_words"].items())
    assert all(re.fullmatch("[a-z0-9]{4,}", word) for word in WORDS["stems"])


@pytest.mark.parametrize(
    ("package", "call"), [("jieba", lambda: chinese_words("x")), ("nltk", porter_stem)]
)
def test_a_package_that_is_missing_is_named_with_its_extra(package, call, monkeypatch):
    for name in (package, "nltk.stem.porter"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"{package}: pip install 'ctxext\[benchmarks\]'"):
        call()


@pytest.mark.skipif(not (has_segmenter() and has_stemmer()), reason="see `make harness`")
def test_the_packages_give_the_recorded_words():
    texts = WORDS["chinese_words"]
    assert {text: chinese_words(text) for text in texts} == texts
    stem = porter_stem()
    assert {word: stem(word) for word in WORDS["stems"]} == WORDS["stems"]


@pytest.mark.parametrize("metric", ["longbench:rouge-l", "infinitebench:rouge-lsum"])
def test_rouge_holds_a_byte_for_each_pair_of_words(metric):
    """A reference is of at most 50,000 words, and an answer of 1,200."""
    text, reference = (" ".join(f"{kind}{i % 350}" for i in range(500)) for kind in "ab")
    tracemalloc.start()
    try:
        assert score(metric, text, [reference]) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 500**2 < peak < 2 * 500**2
