"""Published passkey procedures: lengths by their own loops, keys and scores, by brute force."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctxext.evals import Retrieval
from ctxext.evals.oracle import AnswerKey, EchoPrompt
from ctxext.evals.published_passkeys import PROTOCOLS, passkey_protocol
from ctxext.tasks import KeyValue, TaskContext
from ctxext.tasks.base import encode_fragment
from ctxext.tasks.building.published_passkeys import (
    PI,
    Landmark,
    LongLora,
    Wording,
    Yarn,
    first_true,
    read_wording,
)
from support.toy_tokenizer import toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
SHORT = Wording("Find it.", "It rains. Go on.", "The key is {key}.", "So it is")


def small(name, seq_lens=(200, 300), **options):
    return replace(passkey_protocol(name, seq_lens, **options), source=toy_source())


def tokens(task, n):
    return len(task.prompt(TOKENIZER, 23_456, n // 2, n - n // 2)[0])


def test_the_prompt_is_five_lines_with_noise_cut_by_characters():
    ids, (start, size) = Landmark(SHORT).prompt(TOKENIZER, 407, 25, 20)
    assert ids[0] == TOKENIZER.bos_id
    lines = [
        "Find it.",
        "It rains. Go on. It rains",
        "The key is 407.",
        "It rains. Go on. It ",
        "So it is",
    ]
    assert TOKENIZER.decode(ids) == "\n".join(lines)
    assert TOKENIZER.decode(ids[start : start + size]) == "The key is 407."
    assert ids == TOKENIZER.encode("\n".join(lines), bos=True)


@pytest.mark.parametrize("seq_len", [200, 333, 1000])
def test_yarn_raises_the_noise_until_there_are_enough_tokens_and_takes_the_one_before(seq_len):
    task = Yarn()
    n = 0
    last = 0
    count = 0
    while count < seq_len:
        last = n
        n += 128
        count = tokens(task, n)
    example = task.example(TaskContext(np.random.default_rng(0), TOKENIZER, []), seq_len)
    assert example.meta["characters"] == last
    # No space is kept for the answer.
    assert abs(len(example.prompt) - tokens(task, last)) <= 8


@pytest.mark.parametrize("seq_len", [150, 333, 1000])
def test_landmark_and_pi_use_the_most_noise_that_fits(seq_len):
    hundreds = max(n for n in range(0, 20_000, 100) if tokens(Landmark(SHORT), n) <= seq_len)
    assert Landmark(SHORT).characters(TOKENIZER, seq_len) == hundreds
    characters = max(n for n in range(4 * seq_len) if tokens(PI(SHORT), n) + 10 <= seq_len)
    assert PI(SHORT).characters(TOKENIZER, seq_len) == characters


def test_longlora_counts_characters_alone():
    """The first eight lengths at its interval of 1000 tokens."""
    lengths = [LongLora().characters(TOKENIZER, 1000 * (i + 1)) for i in range(8)]
    assert lengths == [1024 * k for k in (3, 7, 10, 14, 18, 21, 25, 29)]


def test_pi_asks_at_32_equally_spaced_distances():
    evaluation = small("pi", (2000,), n=1)
    records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER)))
    assert len(records) == 32
    assert all(record.scores.correct for record in records)
    distances = np.array([record.question.distance for record in records])
    expected = [2000 * i / 32 for i in range(32, 0, -1)]
    # At both ends the statement and the question take their tokens.
    assert np.max(abs(distances - expected)) < 100
    # What is left for noise, in equal parts.
    assert np.all(abs(-np.diff(distances) - 1850 / 32) < 4)
    for record in records:
        assert abs(record.question.tokens - 2000) < 4
        assert len(record.facts["value"]) == 5


def test_keys_are_uniform_numbers_and_not_five_digits():
    rng = np.random.default_rng(0)
    context = TaskContext(rng, TOKENIZER, [])
    keys = [int(Landmark().example(context, None).meta["value"]) for _ in range(4000)]
    assert 1 <= min(keys) < 50
    assert 49_900 < max(keys) <= 50_000
    assert np.mean([key >= 10_000 for key in keys]) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_trials_as_published_and_records_named_after_the_procedure(name):
    published = {"landmark": 50, "yarn": 20, "pi": 10, "longlora": 10}
    evaluation = passkey_protocol(name, (1024,))
    assert evaluation.n == published[name]
    assert evaluation.task.name == f"passkey-{name}"
    assert len(evaluation.items()) == evaluation.n * (32 if name == "pi" else 1)
    few = small(name, n=3)
    records = list(few(EchoPrompt(TOKENIZER)))
    assert not any(record.scores.correct for record in records)
    for record in records:
        assert record.item.startswith(f"passkey-{name}/")
        assert record.question.task == f"passkey-{name}"
    assert [record.item for record in records] == few.items()
    assert len({record.cluster.document for record in records}) > len(records) - 3
    key = {record.item: record for record in few(AnswerKey.of(few, TOKENIZER))}
    assert all(record.scores.correct for record in key.values())


def test_drawn_depths_are_uniform_and_recorded_as_the_nearest_quarter():
    records = list(small("landmark", (300,), n=200)(EchoPrompt(TOKENIZER)))
    achieved = np.sort([record.question.depth_achieved for record in records])
    # Kolmogorov's distance; 1.36/sqrt(200) = 0.096 at 5 %.
    assert np.max(abs(achieved - np.linspace(0, 1, 200))) < 0.1
    for record in records:
        question = record.question
        assert question.depth in (0, 0.25, 0.5, 0.75, 1)
        assert abs(question.depth - question.depth_achieved) <= 0.125
    with pytest.raises(
        ValueError, match=r"depths that are drawn \(None\) cannot be shared or moved"
    ):
        Retrieval((64,), depths=(0.5, None), task=KeyValue(), shared_context=True)


@pytest.mark.parametrize(
    ("written", "first", "exact"),
    [
        (" {}", 1, 1),
        (" 0{}", 1, 0),
        (": it is {}, not 1", 1, 0),
        (" 1, no: {}", 0, 0),
        ("", 0, 0),
        (" {}5", 0, 1),
    ],
)
def test_the_first_number_counts_or_the_exact_ids(written, first, exact):
    """LongLoRA writes as many ids as the key has, so that nothing after them is seen."""
    expected = {"landmark": first, "yarn": first, "pi": first, "longlora": exact}
    for name, correct in expected.items():
        evaluation = small(name, (200,), n=3)

        def manner(ids):
            return encode_fragment(TOKENIZER, written.format(TOKENIZER.decode(ids).strip()))

        records = list(evaluation(AnswerKey.of(evaluation, TOKENIZER, manner=manner)))
        assert [record.scores.correct for record in records] == [bool(correct)] * len(records), name


def test_controls_have_no_needle_or_no_noise():
    evaluation = small("yarn", (300,), n=5)
    without_needle = replace(evaluation, condition="no-needle")
    without_noise = replace(evaluation, condition="needle-only")
    source = [np.asarray(TOKENIZER.encode("word " * 50))]
    records = list(without_needle(EchoPrompt(TOKENIZER)))
    for cell, record in zip(without_needle._grid().values(), records, strict=True):
        (example,) = without_needle.ask(TOKENIZER, source, [cell])
        assert not re.search(r"\d", TOKENIZER.decode(example.prompt))
        assert record.seq_len == 300
    for record in without_noise(EchoPrompt(TOKENIZER)):
        assert record.facts["characters"] == 0
        assert record.question.tokens < 170


def test_other_words_are_other_questions(tmp_path):
    parts = {
        "statement": "Find it.",
        "noise": "It rains. Go on.",
        "needle": "The key is {key}.",
        "question": "So it is",
    }
    path = tmp_path / "words.json"
    path.write_text(json.dumps(parts))
    reworded = small("yarn", text=path)
    ordinary = small("yarn")
    assert read_wording(path) == reworded.task.wording == SHORT
    assert not set(reworded.items()) & set(ordinary.items())
    for wrong in (parts | {"more": ""}, {"noise": "x"}, [1], parts | {"noise": 3}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(
            ValueError, match="must hold a JSON object of texts with the keys statement, noise, n"
        ):
            read_wording(path)
    with pytest.raises(ValueError, match="needle must contain {key}"):
        Wording(needle="nothing")


def test_refusals():
    with pytest.raises(
        ValueError, match="no passkey protocol 'pose'; known: landmark, yarn, pi, longlora"
    ):
        passkey_protocol("pose", (1024,))
    with pytest.raises(
        ValueError, match=r"passkey-yarn: the shortest prompt is \d+ tokens, and 19 are too few"
    ):
        list(small("yarn", (20,))(EchoPrompt(TOKENIZER)))


@given(st.integers(0, 500))
def test_first_true_is_the_least_number_that_passes(n):
    assert first_true(lambda x: x >= n) == n
