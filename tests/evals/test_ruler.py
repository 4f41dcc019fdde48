"""ruler-exact and its tasks, through whole evaluations by models with a known score."""

import dataclasses

import numpy as np
import pytest

from ctxext.evals import Retrieval
from ctxext.evals.oracle import AnswerKey, EchoPrompt, PerfectReader, WindowReader
from ctxext.evals.ruler import RULER_TASKS, ruler_exact, ruler_tasks
from ctxext.tasks import (
    CommonWords,
    FrequentWords,
    KeyValue,
    Lines,
    Niah,
    Passkey,
    VariableTracking,
)
from ctxext.tasks.base import encode_fragment
from ctxext.tasks.building.scores import failure
from support.synthetic import TASKS, TOKENIZERS, check
from support.toy_tokenizer import toy_source

TOKENIZER = TOKENIZERS["bundled"]
SOURCE = toy_source()
LONGER = [
    dataclasses.replace(task, max_new_tokens=90) if task.name in ("niah", "vt", "cwe") else task
    for task in TASKS
]


def exam_of(task, n=1, **options) -> Retrieval:
    depths = (0.0,) if task.name in ("cwe", "fwe") else (0.0, 0.5, 1.0)
    return Retrieval((700, 900), depths, n, task, SOURCE, **options)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_the_planted_window_is_recovered_and_an_echo_scores_nothing(task):
    """Right exactly where all needles are within the window, counted from the end of the answer."""
    evaluation = exam_of(task, n=2)
    questions = list(evaluation.examples(TOKENIZER))
    reach = sorted({e.meta["distance"] + len(e.answer) - 1 for e in questions})
    for window in (None, reach[0] - 1, reach[len(reach) // 2]):
        records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER, window=window)))
        assert len(records) == len(questions)
        for record in records:
            span = record.question.distance + len(record.question.gold) - 1
            near = window is None or span <= window
            assert record.scores.correct == near
            assert record.scores.score == near
            assert record.scores.chosen == (near if record.scores.choices > 1 else None)
            assert record.question.tokens == record.seq_len
    echo = list(evaluation(EchoPrompt(TOKENIZER)))
    assert not any(record.scores.correct for record in echo)
    # A needle just before the question can be a part.
    if len(questions[0].references) == 1 and task.name != "lines":
        assert not any(record.scores.score for record in echo)


@pytest.mark.parametrize("task", [Niah(), Niah(hay="needles"), Niah(hay="noise"), Lines()], ids=str)
def test_copying_what_followed_the_same_words_is_right_within_the_window(task):
    evaluation = exam_of(task)
    for record in evaluation(PerfectReader(TOKENIZER)):
        assert record.scores.correct
        assert record.scores.chosen is not False
    records = list(evaluation(WindowReader(TOKENIZER, 400)))
    assert {record.scores.correct for record in records} == {True, False}
    for record in records:
        span = record.question.distance + len(record.question.gold) - 1
        assert record.scores.correct == (span <= 400)


def spoiled(manner):
    """Scores of right answers that are written in a certain manner, by task."""
    out = {}
    for task in LONGER:
        evaluation = exam_of(task)
        records = evaluation(AnswerKey.of(evaluation, TOKENIZER, manner=manner))
        out[task] = [(record.scores.score, record.scores.failure) for record in records]
    return out


def test_a_broken_format_scores_as_the_metric_says():
    newline = encode_fragment(TOKENIZER, "\n")
    prefix = encode_fragment(TOKENIZER, " It is")
    # The answer is one line.
    for task, scores in spoiled(lambda ids: newline + ids).items():
        assert all(score == 0 for score, _ in scores), task
    # A phrase before the answer does no harm where there is room.
    for task, scores in spoiled(lambda ids: prefix + ids).items():
        if getattr(task, "max_new_tokens", 0):
            assert all(score == 1 for score, _ in scores), task
        elif task.name == "lines":
            # The number is cut off.
            assert all(score == 0 for score, _ in scores), task
    # Half of the answer is a part of it.
    for task, scores in spoiled(lambda ids: ids[: len(ids) // 2]).items():
        assert all(score < 1 for score, _ in scores), task
        if task.name == "vt":
            assert {kind for _, kind in scores} == {"part"}


def test_a_wrong_value_of_the_prompt_is_distinguished_from_nothing():
    for task in TASKS:
        for e in exam_of(task).examples(TOKENIZER):
            for distractor in e.distractors:
                kind = failure(f" {distractor}", e.references, distractors=e.distractors)
                assert kind == "distractor"
    assert any(e.distractors for e in exam_of(Lines()).examples(TOKENIZER))


def test_controls_without_needle_and_without_haystack():
    for task in TASKS:
        without_haystack = exam_of(task, condition="needle-only")
        answer_key = AnswerKey.of(without_haystack, TOKENIZER)
        assert all(record.scores.correct for record in without_haystack(answer_key))
        ordinary = list(exam_of(task).examples(TOKENIZER))
        without_needle = list(exam_of(task, condition="no-needle").examples(TOKENIZER))
        for question, control in zip(ordinary, without_needle, strict=True):
            assert question.answer.tolist() == control.answer.tolist()
            assert (question.prompt != control.prompt).any()


def test_questions_with_shared_context_read_one_text():
    for task in TASKS:
        if task.supports_shared_context:
            evaluation = Retrieval((900,), (0.0, 0.5, 1.0), 2, task, SOURCE, shared_context=True)
            records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER)))
            assert len(records) == 6
            for record in records:
                assert record.scores.correct
                assert record.question.tokens <= 900
        else:
            with pytest.raises(ValueError, match=f"{task.name} asks one question about each text"):
                Retrieval((900,), task=task, source=SOURCE, shared_context=True)


def test_jitter_covers_the_text_and_both_ends_and_changes_nothing_unless_asked():
    evaluation = Retrieval((600,), n=40, source=SOURCE, jitter=0.125)
    depths = [
        (record.question.depth, record.question.depth_achieved)
        for record in evaluation(EchoPrompt(TOKENIZER))
    ]
    assert all(abs(depth - achieved) <= 0.127 for depth, achieved in depths)
    achieved = np.array([achieved for _, achieved in depths])
    # 20 of each are expected: both ends, and eight parts between them.
    assert (achieved == 0).sum() > 8
    assert (achieved == 1).sum() > 8
    assert (np.histogram(achieved, 8, (0.0001, 0.9999))[0] > 9).all()
    assert not set(evaluation.items()) & set(Retrieval((600,), n=40, source=SOURCE).items())
    assert dataclasses.replace(evaluation, label="x").items() == evaluation.items()
    with pytest.raises(ValueError, match=r"jitter is a share of the text, 0 to 1, got 2.0"):
        Retrieval((600,), jitter=2.0)


def test_the_suite_has_the_numbers_of_the_paper():
    """arXiv 2404.06654, table 5 (needles) and appendix B; tokens for answers as published."""
    tasks = ruler_tasks(4096)
    needles = {name: t for name, t in tasks.items() if isinstance(t, Niah)}
    numbers = {
        name: (t.num_keys, t.num_values, t.num_queries, t.key, t.value, t.hay)
        for name, t in needles.items()
    }
    assert numbers == {
        "niah_single_1": (1, 1, 1, "words", "number", "noise"),
        "niah_single_2": (1, 1, 1, "words", "number", "text"),
        "niah_single_3": (1, 1, 1, "words", "uuid", "text"),
        "niah_multikey_1": (4, 1, 1, "words", "number", "text"),
        "niah_multikey_2": (1, 1, 1, "words", "number", "needles"),
        "niah_multikey_3": (1, 1, 1, "uuid", "uuid", "needles"),
        "niah_multivalue": (1, 4, 1, "words", "number", "text"),
        "niah_multiquery": (4, 1, 4, "words", "number", "text"),
    }
    assert {t.max_new_tokens for t in needles.values()} == {128}
    assert tasks["vt"] == VariableTracking(num_chains=1, hops=4, max_new_tokens=30)
    assert tasks["cwe"] == CommonWords(
        num_common=10, frequent=30, rare=3, shot=(40, 10, 3), max_new_tokens=120
    )
    assert ruler_tasks(4095)["cwe"] == CommonWords(
        num_common=10, frequent=6, rare=1, shot=(20, 3, 1), max_new_tokens=120
    )
    assert tasks["fwe"] == FrequentWords(num_asked=3, alpha=2.0, max_new_tokens=50)
    assert len(tasks) == 11
    assert list(ruler_tasks(4096, (Passkey(), KeyValue())))[11:] == ["qa_1", "qa_2"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_suite_has_exact_lengths_is_balanced_and_solvable(name):
    suite = ruler_exact((1500, 4096), 5, source=SOURCE)
    # Eleven tasks, and cwe has other settings below 4096.
    assert len(suite) == 12
    for evaluation in suite:
        lengths = []
        for e in evaluation.examples(TOKENIZERS[name]):
            check(evaluation.task, name, e)
            lengths.append(len(e.prompt) + e.max_new_tokens)
            again = TOKENIZERS[name].encode(TOKENIZERS[name].decode(e.prompt[1:]))
            # Only where a needle cuts a word.
            assert abs(len(again) - len(e.prompt[1:])) <= 5
        assert sorted(lengths) == sorted(5 * list(evaluation.seq_lens))
    with_questions = ruler_exact((4096,), 5, qa=(Passkey(), KeyValue()))
    assert [e.label for e in with_questions] == list(RULER_TASKS)


def test_the_suite_keeps_its_items_and_refuses_uneven_numbers():
    few = ruler_exact((1500,), 10, source=SOURCE)
    more = ruler_exact((1500, 2000), 20, source=SOURCE)
    assert all(len(e.items()) == 10 for e in few)
    for smaller, larger in zip(few, more, strict=True):
        assert smaller.label == larger.label
        assert set(smaller.items()) < set(larger.items())
    items = [item for evaluation in more for item in evaluation.items()]
    assert len(set(items)) == len(items) == 11 * 40
    records = list(few[-2](AnswerKey.of(few[-2], TOKENIZER)))
    assert [record.question.title for record in records] == ["ruler-exact/cwe"] * 10
    for record in records:
        assert record.scores.correct
        assert record.question.fields["frequent"] == 6
    assert len({tuple(record.facts["counts"]) for record in records}) > 5
    with pytest.raises(
        ValueError, match="ruler: 7 questions cannot be spread evenly over 5 depths"
    ):
        ruler_exact((1500,), 7)
    with pytest.raises(
        ValueError,
        match=r"^niah: a prompt of 256 tokens cannot hold .* 1024 ids; the shortest is \d+",
    ):
        for evaluation in ruler_exact((256,), 5, source=SOURCE):
            list(evaluation.examples(TOKENIZER))
