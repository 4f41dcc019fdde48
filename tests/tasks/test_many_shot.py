"""Examples with labels, learnt again from the text alone."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import Retrieval
from ctxext.evals.oracle import AnswerKey
from ctxext.tasks import ManyShot
from ctxext.tasks.building.categories import CATEGORIES
from ctxext.tasks.building.scores import score
from support.synthetic import TOKENIZERS, context, text_of
from support.toy_tokenizer import toy_source

CATEGORY_OF = {word: name for name, words in CATEGORIES.items() for word in words}


def test_categories_share_no_word():
    words = [word for words in CATEGORIES.values() for word in words]
    assert len(words) == len(set(words)) == len(CATEGORY_OF)
    assert {len(words) for words in CATEGORIES.values()} == {22}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    seq_len=st.integers(300, 3000) | st.none(),
    num_classes=st.integers(2, 12),
    num_questions=st.integers(1, 5),
)
def test_the_examples_explain_the_labels_and_are_balanced(
    seed, seq_len, num_classes, num_questions
):
    task = ManyShot(num_classes)
    examples = task.shared_examples(context(seed), seq_len, [0.0] * num_questions)
    lengths = [len(e.prompt) + e.max_new_tokens for e in examples]
    assert seq_len is None or max(lengths) == seq_len
    assert len({e.prompt[: e.num_shared_tokens].tobytes() for e in examples}) == 1
    for e in examples:
        text = text_of("bundled", e.prompt)
        shots = re.findall(r"^([a-z]+): ([a-z]{5})$", text, re.MULTILINE)
        asked = text.rsplit("\n", 1)[1].removesuffix(":")
        meaning = {label: CATEGORY_OF[word] for word, label in shots}
        assert len(meaning) == len(set(meaning.values())) == num_classes
        assert all(meaning[label] == CATEGORY_OF[word] for word, label in shots)
        assert set(Counter(label for _, label in shots).values()) == {e.meta["shots"]}
        assert asked not in [word for word, _ in shots]
        assert meaning[e.meta["value"]] == CATEGORY_OF[asked] == e.meta["category"]
        assert e.references == (e.meta["value"],)
        assert score(e.metric, e.meta["value"], e.references, labels=e.distractors) == 1
        # Any other label is wrong: one in num_classes by chance.
        assert {*meaning} == {*e.distractors, e.meta["value"]}
        assert len(e.choices) == num_classes - 1
    asked = Counter(e.meta["category"] for e in examples)
    assert max(asked.values()) - min(asked.values()) <= 1


def test_longer_texts_have_more_examples_of_each_class():
    shots = [ManyShot().example(context(0), n).meta["shots"] for n in (400, 800, 1600, 3200)]
    assert shots[0] >= 4
    assert all(1.6 * few < many < 2.5 * few for few, many in zip(shots, shots[1:], strict=False))


def test_records_have_no_depth_and_share_their_text():
    evaluation = Retrieval(
        (600,), (0.0, 0.5, 1.0), 2, ManyShot(), toy_source(), shared_context=True
    )
    records = list(evaluation(AnswerKey.of(evaluation, TOKENIZERS["toy"])))
    assert len(records) == 6 and all(record.scores.score == 1 for record in records)
    assert {record.question.depth for record in records} == {None}
    assert len({record.cluster.text for record in records}) == 2
    assert {record.scores.choices for record in records} == {6}


def test_bad_settings_and_lengths():
    for count in (1, 13):
        with pytest.raises(
            ValueError, match=f"many-shot: num_classes must be 2 to 12, got {count}"
        ):
            ManyShot(count)
    with pytest.raises(ValueError, match="many-shot: ask for at most 22 questions"):
        ManyShot(2).shared_examples(context(0), None, [0.0] * 23)
    with pytest.raises(ValueError, match="many-shot: a prompt of 40 tokens cannot hold"):
        ManyShot().example(context(0), 40)
