"""Trainable tasks: exact to the token, pure in their stream, weights on answers and text only."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.evals import Retrieval
from ctxext.tasks import (
    FILLER_WEIGHT,
    KeyValue,
    Passkey,
    Repeat,
    SuiteOptions,
    Task,
    TaskContext,
)
from ctxext.tasks.base import draw_haystack, encode_fragment
from support.toy_tokenizer import toy_documents, toy_tokenizer

TOKENIZER = toy_tokenizer()
HAYSTACK = toy_documents(TOKENIZER)
TASKS = [
    Passkey(),
    Passkey(digits=3),
    KeyValue(num_pairs=2),
    Passkey(wording="code"),
    Passkey(digits=3, wording="code"),
    KeyValue(wording="code"),
    KeyValue(num_pairs=2, digits=1, wording="code"),
]
STEMS = {
    ("passkey", "prose"): "The passkey of the KEY is",
    ("passkey", "code"): "# key KEY=",
    ("kv", "prose"): "The number of the KEY is",
    ("kv", "code"): "# KEY=",
}
NEWLINE = encode_fragment(TOKENIZER, "\n")
few = settings(max_examples=40, deadline=None)
tasks = st.sampled_from(TASKS)
seeds = st.integers(0, 2**32 - 1)


def context(seed: int) -> TaskContext:
    return TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)


def example(task: Task, seed: int, seq_len: int, depth: float | None):
    return task.example(context(seed), seq_len, depth)


def row(task: Task, seed: int, length: int):
    return task.training_row(context(seed), length)


def stem_of(task: Task, key: str) -> list[int]:
    text = STEMS[task.name, task.wording].replace("KEY", key)
    return NEWLINE + encode_fragment(TOKENIZER, text)


def question_of(task: Task, key: str) -> list[int]:
    if task.wording == "code":
        return stem_of(task, key)
    stem = STEMS[task.name, task.wording]
    text = stem.replace("The", "What is the", 1).removesuffix(" is") + f"? {stem}"
    return NEWLINE + encode_fragment(TOKENIZER, text.replace("KEY", key))


def end_of(task: Task) -> list[int]:
    return encode_fragment(TOKENIZER, ".") if task.wording == "prose" else []


def answer_of(task: Task, value: str) -> list[int]:
    return encode_fragment(TOKENIZER, value if task.wording == "code" else f" {value}")


def key_before(task: Task, tokens: np.ndarray) -> str:
    """The key of the question that the text ends with."""
    text = TOKENIZER.decode(tokens.tolist())
    pattern = re.escape(STEMS[task.name, task.wording]).replace("KEY", "([A-Za-z]+)")
    return re.findall(pattern, text)[-1]


def find(ids: np.ndarray, part: list[int]) -> list[int]:
    """Every index where `part` begins in `ids`."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(part))
    return np.flatnonzero((windows == part).all(1)).tolist()


@few
@given(tasks, seeds, st.integers(120, 3000), st.none() | st.floats(0, 1))
def test_example_is_exact_to_the_token_and_describes_itself(task, seed, seq_len, depth):
    prompt, answer, achieved, meta, *_ = example(task, seed, seq_len, depth)
    assert prompt.dtype == answer.dtype == np.int32
    assert len(prompt) + len(answer) == seq_len
    assert prompt[0] == TOKENIZER.bos_id
    assert (prompt[1:] != TOKENIZER.bos_id).all()
    assert answer.tolist() == answer_of(task, meta["value"])
    assert meta["value"][0] != "0"
    assert len(meta["value"]) == task.digits
    stem = stem_of(task, meta["name"])
    needle = stem + answer.tolist() + end_of(task) + NEWLINE
    question = question_of(task, meta["name"])
    ((start, size),) = meta["needles"]
    # The key is in the needle and in the question only.
    assert find(prompt, needle) == [start]
    assert find(prompt, question)[-1] == len(prompt) - len(question)
    assert find(prompt, stem)[0] == start
    assert prompt[start : start + size].tolist() == needle
    assert meta["distance"] == meta["distances"][0] == len(prompt) - start
    assert len(meta["distances"]) == len(set(meta["distances"])) == getattr(task, "num_pairs", 1)
    if depth is not None:
        assert abs(achieved - depth) <= 0.501 / max(1, sum(n for *_, n in meta["haystack"]))


@few
@given(tasks, seeds)
def test_both_ends_are_reached_and_depth_moves_the_needle_monotonically(task, seed):
    depths = np.linspace(0, 1, 9)
    examples = [example(task, seed, 400, depth) for depth in depths]
    starts = [e.meta["needles"][0][0] for e in examples]
    assert starts == sorted(starts)
    assert len(set(starts)) == len(starts)
    assert [examples[0].depth, examples[-1].depth] == [0, 1]
    if isinstance(task, Passkey):
        last = examples[-1]
        needle = last.meta["needles"][0][1]
        question = len(question_of(task, last.meta["name"])) + len(last.answer)
        assert starts[0] == 1
        assert starts[-1] + needle + question == 400


@few
@given(tasks, seeds)
def test_an_example_depends_on_its_random_stream_alone(task, seed):
    first = example(task, seed, 300, None)
    again = example(task, seed, 300, None)
    other = example(task, seed + 1, 300, 0.5)
    np.testing.assert_array_equal(first.prompt, again.prompt)
    assert first.meta == again.meta
    assert other.prompt.tolist() != first.prompt.tolist()
    for a, b in zip(row(task, seed, 200), row(task, seed, 200), strict=True):
        np.testing.assert_array_equal(a, b)


@few
@given(tasks, seeds, st.integers(80, 700))
def test_training_row_weights_answers_and_text_only(task, seed, length):
    tokens, weights = row(task, seed, length)
    assert tokens.shape == weights.shape == (length,)
    assert (tokens.dtype, weights.dtype) == (np.int32, np.float32)
    assert tokens[0] == TOKENIZER.bos_id
    assert weights[0] == 0
    # A row counts as much as a row of text.
    assert weights.sum() == pytest.approx(length - 1, rel=1e-5)
    is_answer = weights == weights.max()
    relative = np.unique(weights / weights.max())
    assert all(min(abs(w - x) for x in (0, FILLER_WEIGHT, 1)) < 1e-6 for w in relative)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_answer, [0]])))
    assert len(edges) >= 2
    for start, stop in edges.reshape(-1, 2):
        key = key_before(task, tokens[:start])
        stem = stem_of(task, key)
        asked = question_of(task, key)
        answer = tokens[start:stop].tolist()
        question = start - len(asked)
        assert tokens[question:start].tolist() == asked
        assert (weights[question:start] == 0).all()
        # Each key: its needle, then its only question, both with the same digits.
        needle = find(tokens, stem)[0]
        line = stem + answer + end_of(task)
        assert find(tokens, asked)[-1] == question
        assert tokens[needle:][: len(line)].tolist() == line
        assert (weights[needle:][: len(line) + len(NEWLINE)] == 0).all()
        assert len(TOKENIZER.decode(answer).strip()) == task.digits


def test_training_rows_hold_many_questions_and_every_distance():
    for task, least_of_most in ((Passkey(wording="code"), 8), (KeyValue(wording="code"), 10)):
        counts = []
        distances = []
        for seed in range(100):
            tokens, weights = row(task, seed, 256)
            is_answer = weights == weights.max()
            starts = np.flatnonzero(np.diff(is_answer.astype(int)) == 1) + 1
            counts.append(len(starts))
            for start in starts:
                key = key_before(task, tokens[:start])
                needle, question = find(tokens, stem_of(task, key))
                distances.append(question - needle)
        assert max(counts) >= least_of_most
        assert np.mean(counts) > 3
        shares = np.histogram(distances, [0, 64, 128, 192, 256])[0] / len(distances)
        assert (shares > 0.01).all() and shares[0] > 0.3, shares


def test_values_are_spread_over_all_first_digits():
    values = [example(Passkey(), seed, 80, 0.5).meta["value"] for seed in range(400)]
    counts = np.bincount([int(value[0]) for value in values], minlength=10)
    assert counts[0] == 0
    assert (counts[1:] > 20).all()  # 44 expected


def test_haystack_excerpts_say_where_the_text_is_from():
    text, excerpts = draw_haystack(np.random.default_rng(3), HAYSTACK, 5000)
    assert (
        text.tolist() == np.concatenate([HAYSTACK[d][s : s + n] for d, s, n in excerpts]).tolist()
    )
    assert len(text) == 5000
    assert draw_haystack(np.random.default_rng(3), HAYSTACK, 0)[0].tolist() == []


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_an_error_about_the_length_names_the_shortest(task):
    pattern = rf"^{task.name}: .*15 tokens cannot hold .* shortest is \d+ tokens$"
    with pytest.raises(ValueError, match=pattern) as error:
        example(task, 0, 15, 0.5)
    shortest = int(str(error.value).split()[-2])
    prompt, answer, *_ = example(task, 0, shortest, 0.5)
    assert len(prompt) + len(answer) == shortest
    with pytest.raises(ValueError, match=f"shortest is {shortest} tokens"):
        example(task, 0, shortest - 1, 0.5)
    with pytest.raises(ValueError, match="training row of 5 tokens"):
        row(task, 0, 5)


def test_other_bad_input():
    with pytest.raises(ValueError, match="depth 1.5 is outside"):
        example(Passkey(), 0, 100, 1.5)
    with pytest.raises(ValueError, match="haystack is empty"):
        Passkey().example(TaskContext(np.random.default_rng(0), TOKENIZER, []), 100)
    with pytest.raises(ValueError, match="99 records do not fit 98 names"):
        example(KeyValue(num_pairs=99), 0, 1000, 0.5)


@few
@given(seeds, st.integers(18, 900), st.floats(0, 1))
def test_repeat_asks_for_the_rest_of_a_string_of_the_prompt(seed, seq_len, depth):
    prompt, answer, achieved, meta, *_ = example(Repeat(), seed, seq_len, depth)
    assert len(prompt) + len(answer) == seq_len
    assert prompt[0] == TOKENIZER.bos_id
    start = meta["needles"][0][0]
    string = prompt[start:][:8].tolist()
    assert string == [*prompt[-4:], *answer]
    assert len(set(string)) == 8
    assert meta["distance"] == len(prompt) - start
    assert abs(achieved - depth) <= 0.501 / (seq_len - 17)
    with pytest.raises(ValueError, match="repeat: a prompt of 16 tokens .* shortest is 17 tokens"):
        example(Repeat(), seed, 16, depth)


@few
@given(seeds, st.integers(5, 400))
def test_repeat_rows_weight_only_tokens_that_can_be_copied(seed, length):
    tokens, weights = row(Repeat(), seed, length)
    assert (tokens.shape, tokens.dtype, weights.dtype) == ((length,), np.int32, np.float32)
    assert weights.sum() == pytest.approx(length - 1, rel=1e-5)
    assert weights[0] == 0
    for t in np.flatnonzero(weights):
        # The token before it occurred earlier, followed by the same token.
        earlier = find(tokens[: t - 1], tokens[t - 1 : t].tolist())
        assert any(tokens[i + 1] == tokens[t] for i in earlier)
    message = "repeat: a training row of 4 tokens is too short; the shortest is 5"
    with pytest.raises(ValueError, match=message):
        row(Repeat(), seed, 4)


def test_names_of_the_default_wording_cannot_be_read_as_counters():
    """Words: neither digits nor single letters, and no name is followed by another one."""
    for task in (Passkey(), KeyValue()):
        names = {example(task, seed, 2000, 0.5).meta["name"] for seed in range(200)}
        assert all(re.fullmatch("[a-z]{4,}", name) for name in names)
        assert len(names) > 50


def test_the_default_wording_is_prose_and_a_suite_passes_on_another():
    prompt = TOKENIZER.decode(example(Passkey(), 0, 200, 0.5).prompt.tolist())
    needle = r"\nThe passkey of the ([a-z]+) is [0-9]{5}\.\n"
    question = r"\nWhat is the passkey of the \1\? The passkey of the \1 is$"
    assert re.search(f"{needle}.*{question}", prompt, re.DOTALL)
    assert Passkey() == Passkey(wording="prose")
    for task in (Passkey, KeyValue):
        (asked,) = task.for_suite(task.name, SuiteOptions(256))
        assert asked.wording == "prose"
        (asked,) = task.for_suite(task.name, SuiteOptions(256, wording="code"))
        assert asked.wording == "code"
        with pytest.raises(ValueError, match="wording 'verse' is not known; choose prose or code"):
            task(wording="verse")


def test_the_wording_code_asks_the_questions_that_it_always_asked():
    """Names of items seed their questions; these two are of the time of a single wording."""
    passkey = Retrieval((256,), n=1, depths=(0.5,), task=Passkey(wording="code"))
    pairs = Retrieval((256,), n=1, depths=(0.5,), task=KeyValue(num_pairs=4, wording="code"))
    assert passkey.items() == ["passkey/26d60539/256/0.5/0"]
    assert pairs.items() == ["kv/08df7064/256/0.5/0"]
    prose = Retrieval((256,), n=1, depths=(0.5,))
    assert prose.items() != passkey.items()


@pytest.mark.parametrize("task", [Passkey(), KeyValue()], ids=lambda task: task.name)
def test_many_questions_about_one_text_choose_between_eight_values(task):
    """The right one and seven others of the text, each of which is a wrong choice as often."""
    depths = [i / 15 for i in range(16)]
    asked = task.shared_examples(context(0), 1024, depths)
    values = [e.references[0] for e in asked]
    wrong = [TOKENIZER.decode(choice.tolist()).strip() for e in asked for choice in e.choices]
    assert {len(e.choices) for e in asked} == {7}
    assert sorted(wrong) == sorted(values * 7)
    for e in asked:
        assert e.references[0] not in [TOKENIZER.decode(c.tolist()).strip() for c in e.choices]
        assert sorted(e.distractors) == sorted(set(values) - set(e.references))
