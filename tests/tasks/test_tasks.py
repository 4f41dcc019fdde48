"""Retrieval tasks: exact to the token, pure in their stream, answers and weights exactly where they are said to be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.tasks import FILLER_WEIGHT, KeyValue, Passkey, Repeat, Task, TaskContext
from ctxext.tasks.base import draw_haystack, encode_fragment
from support.toy_tokenizer import toy_documents, toy_tokenizer

TOKENIZER = toy_tokenizer()
HAYSTACK = toy_documents(TOKENIZER)
TASKS = [Passkey(), Passkey(digits=3), KeyValue(), KeyValue(num_pairs=2, digits=1)]
NEWLINE = encode_fragment(TOKENIZER, "\n")
few = settings(max_examples=40, deadline=None)
tasks = st.sampled_from(TASKS)
seeds = st.integers(0, 2**32 - 1)


def example(task: Task, seed: int, seq_len: int, depth: float | None):
    context = TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)
    return task.example(context, seq_len, depth)


def row(task: Task, seed: int, length: int):
    context = TaskContext(np.random.default_rng(seed), TOKENIZER, HAYSTACK)
    return task.training_row(context, length)


def stem_of(task: Task, name: str) -> list[int]:
    text = f"# key {name}=" if isinstance(task, Passkey) else f"# {name}="
    return NEWLINE + encode_fragment(TOKENIZER, text)


def find(ids: np.ndarray, part: list[int]) -> list[int]:
    return np.flatnonzero(
        (np.lib.stride_tricks.sliding_window_view(ids, len(part)) == part).all(1)
    ).tolist()


@few
@given(tasks, seeds, st.integers(120, 3000), st.none() | st.floats(0, 1))
def test_example_is_exact_to_the_token_and_records_what_it_holds(task, seed, seq_len, depth):
    prompt, answer, achieved, meta, *_ = example(task, seed, seq_len, depth)
    assert prompt.dtype == answer.dtype == np.int32
    assert len(prompt) + len(answer) == seq_len
    assert prompt[0] == TOKENIZER.bos_id and (prompt[1:] != TOKENIZER.bos_id).all()
    assert answer.tolist() == encode_fragment(TOKENIZER, meta["value"])
    assert meta["value"][0] != "0" and len(meta["value"]) == task.digits
    stem = stem_of(task, meta["name"])
    needle = stem + answer.tolist() + NEWLINE
    ((start, size),) = meta["needles"]
    assert find(prompt, stem) == [
        start,
        len(prompt) - len(stem),
    ]  # in the needle and in the question only
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
    needles = [e.meta["needles"][0][0] for e in examples]
    assert needles == sorted(needles) and len(set(needles)) == len(needles)
    assert [examples[0].depth, examples[-1].depth] == [0, 1]
    if isinstance(task, Passkey):
        assert needles[0] == 1
        assert needles[-1] + 2 * examples[-1].meta["needles"][0][1] - len(NEWLINE) == 400


@few
@given(tasks, seeds)
def test_the_stream_alone_decides(task, seed):
    first, again, other = (
        example(task, seed, 300, None),
        example(task, seed, 300, None),
        example(task, seed + 1, 300, 0.5),
    )
    np.testing.assert_array_equal(first.prompt, again.prompt)
    assert first.meta == again.meta
    assert other.prompt.tolist() != first.prompt.tolist()
    for a, b in zip(row(task, seed, 200), row(task, seed, 200), strict=True):
        np.testing.assert_array_equal(a, b)


@few
@given(tasks, seeds, st.integers(40, 700))
def test_training_row_weights_answers_and_text_only(task, seed, length):
    tokens, weights = row(task, seed, length)
    assert tokens.shape == weights.shape == (length,)
    assert (tokens.dtype, weights.dtype) == (np.int32, np.float32)
    assert tokens[0] == TOKENIZER.bos_id and weights[0] == 0
    assert weights.sum() == pytest.approx(
        length - 1, rel=1e-5
    )  # a row counts as much as a row of text
    answers = weights == weights.max()
    relative = np.unique(weights / weights.max())
    assert all(min(abs(w - x) for x in (0, FILLER_WEIGHT, 1)) < 1e-6 for w in relative)
    runs = np.flatnonzero(np.diff(np.concatenate([[0], answers, [0]])))
    assert len(runs) >= 2
    for start, stop in runs.reshape(-1, 2):
        text = TOKENIZER.decode(tokens[:start].tolist())
        name = text[-2]
        stem = stem_of(task, name)
        answer = tokens[start:stop].tolist()
        here = start - len(stem)
        assert tokens[here:start].tolist() == stem and (weights[here:start] == 0).all()
        needle, asked = find(
            tokens, stem
        )  # each name: its record, then its one question, both with the same digits
        assert (
            asked == here and tokens[needle:][: len(stem) + len(answer)].tolist() == stem + answer
        )
        assert (weights[needle:][: len(stem) + len(answer) + len(NEWLINE)] == 0).all()
        assert len(TOKENIZER.decode(answer).strip()) == task.digits


def test_training_rows_hold_many_questions_and_every_distance():
    for task, most in ((Passkey(), 8), (KeyValue(), 10)):
        counts, distances = [], []
        for seed in range(100):
            tokens, weights = row(task, seed, 256)
            answers = weights == weights.max()
            starts = np.flatnonzero(np.diff(answers.astype(int)) == 1) + 1
            counts.append(len(starts))
            for start in starts:
                needle, asked = find(
                    tokens, stem_of(task, TOKENIZER.decode(tokens[:start].tolist())[-2])
                )
                distances.append(asked - needle)
        assert max(counts) >= most and np.mean(counts) > 3
        shares = np.histogram(distances, [0, 64, 128, 192, 256])[0] / len(distances)
        assert (shares > 0.01).all() and shares[0] > 0.3, shares


def test_values_are_spread_over_all_first_digits():
    values = [example(Passkey(), seed, 60, 0.5).meta["value"] for seed in range(400)]
    counts = np.bincount([int(v[0]) for v in values], minlength=10)
    assert counts[0] == 0 and (counts[1:] > 20).all()  # 44 expected


def test_haystack_pieces_say_where_the_text_is_from():
    text, pieces = draw_haystack(np.random.default_rng(3), HAYSTACK, 5000)
    assert (
        text.tolist() == np.concatenate([HAYSTACK[d][s : s + n] for d, s, n in pieces]).tolist()
        and len(text) == 5000
    )
    assert draw_haystack(np.random.default_rng(3), HAYSTACK, 0)[0].tolist() == []


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_what_cannot_fit_is_one_line_that_names_the_minimum(task):
    with pytest.raises(
        ValueError, match=rf"^{task.name}: .*15 tokens cannot hold .* shortest is \d+ tokens$"
    ) as error:
        example(task, 0, 15, 0.5)
    least = int(str(error.value).split()[-2])
    assert len(example(task, 0, least, 0.5).prompt) + task.digits == least
    with pytest.raises(ValueError, match=f"shortest is {least} tokens"):
        example(task, 0, least - 1, 0.5)
    with pytest.raises(ValueError, match="training row of 5 tokens"):
        row(task, 0, 5)


def test_other_bad_input():
    with pytest.raises(ValueError, match="depth 1.5 is outside"):
        example(Passkey(), 0, 100, 1.5)
    with pytest.raises(ValueError, match="haystack is empty"):
        Passkey().example(TaskContext(np.random.default_rng(0), TOKENIZER, []), 100)
    with pytest.raises(ValueError, match="99 records do not fit 52 names"):
        example(KeyValue(num_pairs=99), 0, 1000, 0.5)


@few
@given(seeds, st.integers(18, 900), st.floats(0, 1))
def test_repeat_asks_for_the_rest_of_a_string_that_was_there(seed, seq_len, depth):
    prompt, answer, achieved, meta, *_ = example(Repeat(), seed, seq_len, depth)
    assert len(prompt) + len(answer) == seq_len and prompt[0] == TOKENIZER.bos_id
    string = prompt[meta["needles"][0][0] :][:8].tolist()
    assert string == [*prompt[-4:], *answer] and len(set(string)) == 8
    assert meta["distance"] == len(prompt) - meta["needles"][0][0]
    assert abs(achieved - depth) <= 0.501 / (seq_len - 17)
    with pytest.raises(ValueError, match="repeat: a prompt of 16 tokens .* shortest is 17 tokens"):
        example(Repeat(), seed, 16, depth)


@few
@given(seeds, st.integers(5, 400))
def test_repeat_rows_weight_only_what_can_be_copied(seed, length):
    tokens, weights = row(Repeat(), seed, length)
    assert (tokens.shape, tokens.dtype, weights.dtype) == ((length,), np.int32, np.float32)
    assert weights.sum() == pytest.approx(length - 1, rel=1e-5) and weights[0] == 0
    for t in np.flatnonzero(weights):
        before = find(
            tokens[: t - 1], tokens[t - 1 : t].tolist()
        )  # the token before occurred with the same follower
        assert any(tokens[i + 1] == tokens[t] for i in before)
    with pytest.raises(
        ValueError, match="repeat: a training row of 4 tokens is too short; the shortest is 5"
    ):
        row(Repeat(), seed, 4)
