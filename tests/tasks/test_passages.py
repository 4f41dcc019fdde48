"""Passages to answer from and to rank, read again by readers of the text alone."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.tasks import Rag, Rerank
from ctxext.tasks.building.registry import RELATIONS
from ctxext.tasks.building.scores import score
from ctxext.tasks.rerank import chance_ndcg
from support.synthetic import TOKENIZERS, context, text_of

seeds = st.integers(0, 2**32 - 1)
grid = given(
    seed=seeds,
    seq_len=st.integers(1400, 2500) | st.none(),
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
SENTENCES = {
    "town": r"{name} was born in (\w+)\.",
    "trade": r"{name} earned a living as a (\w+)\.",
    "instrument": r"On Sundays, {name} played the (\w+)\.",
    "animal": r"In the yard, {name} kept a (\w+)\.",
}
QUESTIONS = {
    "town": r"In which town was (.+) born\?",
    "trade": r"What was the trade of (.+)\?",
    "instrument": r"Which instrument did (.+) play\?",
    "animal": r"Which animal did (.+) keep\?",
}


def ask(text: str, question: str) -> list[str]:
    """What the sentences of a text answer to a question."""
    for relation, pattern in QUESTIONS.items():
        if match := re.fullmatch(pattern, question):
            return re.findall(SENTENCES[relation].format(name=match[1]), text)
    raise AssertionError(question)


def shared(examples, seq_len):
    """The one text that all examples are about; the longest has the length."""
    lengths = [len(e.prompt) + e.max_new_tokens for e in examples]
    assert seq_len is None or max(lengths) == seq_len
    (prefix,) = {e.prompt[: e.num_shared_tokens].tobytes() for e in examples}
    return prefix


@settings(max_examples=12, deadline=None)
@grid
def test_one_passage_answers_a_question(seed, seq_len, depths):
    examples = Rag().shared_examples(context(seed), seq_len, depths)
    shared(examples, seq_len)
    for e in examples:
        text = text_of("bundled", e.prompt)
        documents, *asked = text.split("\n\nQuestion: ")
        assert len(asked) == 3 and asked[-1].endswith("\nAnswer:")
        for question, written in (part.split("\nAnswer:") for part in asked[:-1]):
            assert ask(documents, question) == [written.strip()]
        question = asked[-1].removesuffix("\nAnswer:")
        assert ask(documents, question) == [e.meta["value"]] == list(e.references)
        assert TOKENIZERS["bundled"].decode(e.answer.tolist()).strip() == e.meta["value"]
        ((start, size),) = e.meta["needles"]
        needle = TOKENIZERS["bundled"].decode(e.prompt[start : start + size].tolist())
        assert ask(needle, question) == [e.meta["value"]]
        # Somebody else has the same first or last name.
        first, last = e.meta["name"].split()
        assert len(re.findall(rf"\nDocument: (?:{first} |\w+ {last}\n)", documents)) >= 2
        assert score(e.metric, f" {e.meta['value']}", e.references, labels=e.distractors) == 1
        assert score(e.metric, f" {e.distractors[0]}", e.references, labels=e.distractors) == 0
        assert len(e.choices) == 7


def test_every_value_is_as_likely_as_any_other():
    for relation in RELATIONS.values():
        assert len(relation.values) == len(set(relation.values)) == 24
        assert not any(a != b and a in b for a in relation.values for b in relation.values)
        assert not any(
            value[0] in "aeiou" for value in relation.values if "a {" in relation.sentence
        )
    asked = [e.meta for e in Rag(shots=0).shared_examples(context(0), None, [None] * 400)]
    for relation in RELATIONS:
        values = [meta["value"] for meta in asked if meta["relation"] == relation]
        # Of about 100 and 24 values: 4 standard errors above 4 are 13.
        assert 60 < len(values) < 140
        assert max(values.count(value) for value in values) <= 13


def grades(text: str, query: str) -> dict[str, int]:
    """The matching words of a query in each passage."""
    passages = re.findall(r"^\[(\d+)\] What was found: the (.+)\.$", text, re.MULTILINE)
    words = [set(re.sub(r" at the ", " ", found).split()) for _, found in passages]
    wanted = set(query.replace(" at the ", " ").split())
    return {name: len(wanted & own) for (name, _), own in zip(passages, words, strict=True)}


@settings(max_examples=12, deadline=None)
@grid
def test_grades_are_the_words_that_match(seed, seq_len, depths):
    examples = Rerank().shared_examples(context(seed), seq_len, depths)
    shared(examples, seq_len)
    for e in examples:
        text = text_of("bundled", e.prompt)
        asked = re.findall(r"\n\nQuery: (.+)\nRanking:(.*)", text)
        assert len(asked) == 3
        for query, written in asked:
            found = grades(text, query)
            assert len(found) == e.meta["num_passages"]
            assert sorted(grade for grade in found.values() if grade) == [1, 1, 2, 2, 3]
            graded = [name for name, grade in found.items() for _ in range(grade)]
            best = sorted(found, key=lambda name: -found[name])[:5]
            assert score("ndcg@10", " > ".join(best), graded) == 1
            assert not written or score("ndcg@10", written, graded) == 1
        assert sorted(e.references) == sorted(graded)
        assert asked[-1][1] == ""
        answer = TOKENIZERS["bundled"].decode(e.answer.tolist())
        assert score(e.metric, answer, e.references) == 1
        (worst,) = (TOKENIZERS["bundled"].decode(choice.tolist()) for choice in e.choices)
        assert 0.6 < score(e.metric, worst, e.references) < 0.85
        assert e.meta["chance_score"] == chance_ndcg(e.meta["num_passages"])
        assert len(e.answer) < e.max_new_tokens


def test_a_random_ranking_scores_at_chance():
    rng = np.random.default_rng(0)
    graded = ["1"] * 3 + ["2"] * 2 + ["3"] * 2 + ["4", "5"]
    for size in (7, 40):
        scores = [
            score("ndcg@10", " > ".join(map(str, rng.permutation(size) + 1)), graded)
            for _ in range(1000)
        ]
        four_errors = 4 * np.std(scores) / np.sqrt(len(scores))
        assert abs(np.mean(scores) - chance_ndcg(size)) < four_errors


@pytest.mark.parametrize("task", [Rag(), Rerank()], ids=str)
def test_depth_moves_the_passage_and_the_text_is_full(task):
    for depth in (0.0, 0.5, 1.0):
        (e,) = task.shared_examples(context(1), 2500, [depth])
        assert abs(e.depth - depth) <= 0.51 / (e.meta["num_passages"] - 1)
        text = text_of("bundled", e.prompt)
        before = text.index("\n\nDocument: ") if task.name == "rag" else text.index("\n[")
        assert len(TOKENIZERS["bundled"].encode(text[:before])) < 140


def test_bad_settings_and_lengths():
    with pytest.raises(ValueError, match="rag: shots must be at least 0"):
        Rag(shots=-1)
    with pytest.raises(ValueError, match="rerank: shots must be at least 0"):
        Rerank(shots=-1)
    with pytest.raises(ValueError, match="rerank: ask for at most 41 queries"):
        Rerank().shared_examples(context(0), None, [0.5] * 40)
    for task in (Rag(), Rerank()):
        with pytest.raises(ValueError, match=f"{task.name}: a prompt of 200 tokens cannot hold"):
            task.shared_examples(context(0), 200, [0.0, 0.5, 1.0])
