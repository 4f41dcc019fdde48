"""Synthetic tasks: exact to the token, solvable by a reader of the text, with true needle spans."""

import math
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.tasks import (
    CommonWords,
    FrequentWords,
    Lines,
    Mqar,
    Niah,
    VariableTracking,
    without_needles,
)
from ctxext.tasks.building.vocabulary import ADJECTIVES, NOUNS, distinct
from support.synthetic import (
    TASKS,
    TOKENIZERS,
    answer_of,
    check,
    context,
    example,
    haystack,
    text_of,
)

SHARED = [task for task in TASKS if task.supports_shared_context]
few = settings(max_examples=60, deadline=None)
tasks = st.sampled_from(TASKS)
names = st.sampled_from(list(TOKENIZERS))
seeds = st.integers(0, 2**32 - 1)


@few
@given(tasks, names, seeds, st.integers(700, 1600), st.none() | st.floats(0, 1))
def test_exact_to_the_token_and_the_answer_can_be_read(task, name, seed, seq_len, depth):
    e = example(task, seed, seq_len, depth, name)
    assert len(e.prompt) + e.max_new_tokens == seq_len
    check(task, name, e)


@few
@given(tasks, names, seeds)
def test_without_a_length_it_is_the_shortest_solvable_prompt(task, name, seed):
    e = example(task, seed, None, None, name)
    check(task, name, e)
    assert e.meta["haystack"] == []
    assert len(e.prompt) < 1000


@few
@given(st.sampled_from(SHARED), names, seeds, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_shared_examples_are_about_one_text(task, name, seed, depths):
    examples = task.shared_examples(context(seed, name), 1500, depths)
    assert len(examples) == len(depths)
    assert max(len(e.prompt) + e.max_new_tokens for e in examples) == 1500
    shared = examples[0].prompt[: examples[0].num_shared_tokens]
    for e in examples:
        check(task, name, e)
        np.testing.assert_array_equal(e.prompt[: e.num_shared_tokens], shared)
    assert len({tuple(e.answer.tolist()) for e in examples}) == len(examples)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_an_example_depends_on_its_random_stream_alone(task):
    first = example(task, 5, 900)
    again = example(task, 5, 900)
    other = example(task, 6, 900)
    assert repr(first) == repr(again)
    assert first.prompt.tolist() == again.prompt.tolist()
    assert first.prompt.tolist() != other.prompt.tolist()
    assert first.answer.tolist() != other.answer.tolist()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_without_its_needles_a_question_has_no_answer(task, name):
    for seed in range(3):
        e = example(task, seed, 1000, None, name)
        (control,) = without_needles([e], np.random.default_rng(9), haystack(name))
        spans = [np.arange(start, start + size) for start, size in e.meta["needles"]]
        changed = np.flatnonzero(control.prompt != e.prompt)
        assert set(changed) <= set(np.concatenate(spans))
        if isinstance(task, Mqar):
            assert e.answer.tolist() not in answer_of(task, name, control.prompt)
            continue
        body = text_of(name, control.prompt).rsplit("\n", 1)[0]
        if task.name != "vt":  # whose names are in the example and in no other line
            assert not any(reference in body.split() for reference in e.references)
        assert not set(answer_of(task, name, control.prompt)) & set(e.references)


@pytest.mark.parametrize("task", [t for t in TASKS if t.name not in ("cwe", "fwe")], ids=str)
def test_both_ends_are_reached_and_depth_moves_the_needle(task):
    depths = np.linspace(0, 1, 5)
    examples = [example(task, 3, 1000, depth) for depth in depths]
    assert [examples[0].depth, examples[-1].depth] == [0, 1]
    assert all(abs(e.depth - depth) < 0.06 for e, depth in zip(examples, depths, strict=True))
    first_start = examples[0].meta["needles"][0][0]
    last = examples[-1].meta["needles"]
    if task in (Niah(), Niah(hay="noise", max_new_tokens=60)):
        assert first_start == 1
        # The needle without its value (a space and seven digits) and its newline.
        question = last[0][1] - 9
        assert sum(last[0]) + question == len(examples[-1].prompt)
    if isinstance(task, VariableTracking):
        gaps = [b - a - n for (a, n), (b, _) in zip(last, last[1:], strict=False)]
        assert gaps == [0] * task.hops  # the whole chain is at the end


def test_needles_are_spread_over_the_text_in_any_order():
    task = Niah(num_keys=4, num_queries=4)
    shares = []
    orders = Counter()
    for seed in range(300):
        e = example(task, seed, 600)
        shares += [(start - 1) / 320 for start, _ in e.meta["needles"]]
        text = text_of("bundled", e.prompt)
        order = np.argsort([text.index(reference) for reference in e.references])
        orders[tuple(order.tolist())] += 1
    assert len(orders) == 24
    assert max(orders.values()) < 30  # 12.5 expected of each
    quarters = np.histogram(shares, 4, (0, 1.5))[0] / len(shares)
    assert (quarters > 0.15).all(), quarters
    depths = [example(task, seed, 600).depth for seed in range(400)]
    assert (np.histogram(depths, 4, (0, 1))[0] > 70).all()  # 100 expected
    line_depths = [example(Lines(), seed, 600).depth for seed in range(400)]
    assert (np.histogram(line_depths, 4, (0, 1))[0] > 65).all()


def test_no_word_occurs_inside_another():
    for words, overlaps in ((ADJECTIVES, str.endswith), (NOUNS, str.startswith)):
        assert len(set(words)) == len(words)
        assert not [(x, y) for x in words for y in words if x != y and overlaps(x, y)]
    assert len(set(islice(distinct(np.random.default_rng(0), "words"), 9000))) == 9000
    for seed in range(20):
        for task in (CommonWords(frequent=6, rare=1, shot=(20, 3, 1)), FrequentWords()):
            e = example(task, seed, 2000)
            assert not [(r, d) for r in e.references for d in e.distractors if r in d]
    coined = list(islice(distinct(np.random.default_rng(0), "coined"), 68_600))
    assert len(set(coined)) == 68_600 == 14**3 * 5**2
    assert {len(word) for word in coined} == {5}
    with pytest.raises(ValueError, match="all strings of the kind 'coined' are used up"):
        list(distinct(np.random.default_rng(0), "coined"))


def test_words_are_as_frequent_as_zeta_says():
    """n / (k**2 zeta(2)) with zeta(2) = pi**2 / 6, each up to a tenth more or less."""
    expected = np.array([1 / (k**2 * math.pi**2 / 6) for k in (2, 3, 4)])
    all_counts = []
    for seed in range(30):
        e = example(FrequentWords(), seed, 8000)
        shares = np.array(e.meta["counts"]) / e.meta["num_words"]
        assert (abs(shares / expected - 1) < 0.25).all()
        all_counts.append(tuple(e.meta["counts"]))
    assert len(set(all_counts)) > 25  # drawn anew for each question
    second, third = (np.mean([counts[i] for counts in all_counts]) for i in (0, 1))
    assert abs(second / third - 9 / 4) < 0.15


def test_common_words_have_random_counts_and_layouts():
    all_counts = set()
    for seed in range(10):
        e = example(CommonWords(), seed, 4096)
        all_counts.add(tuple(e.meta["counts"]))
        assert len(e.references) == 10
        assert all(20 <= n <= 40 for n in e.meta["counts"])
        text = text_of("bundled", e.prompt)
        shot, real = (Counter(part.split("\n")[0].split()) for part in text.split("\nList:")[1:])
        assert not shot.keys() & real.keys()
        assert len(shot) == 40
        assert sorted(shot.values())[:30] == sorted(n for n in shot.values() if n <= 4)
        assert all(2 <= n <= 4 for word, n in real.items() if word not in e.references)
        answer = text.split("most often:")[1].split("\n")[0].strip().split(", ")
        assert set(answer) == {word for word, _ in shot.most_common(10)}
    assert len(all_counts) == 10


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_an_error_about_the_length_names_task_length_and_tokenizer(task, name):
    vocab_size = TOKENIZERS[name].vocab_size
    pattern = (
        rf"^{task.name}: a prompt of 6 tokens .* tokenizer of {vocab_size} ids; .* \d+ tokens$"
    )
    with pytest.raises(ValueError, match=pattern) as error:
        example(task, 0, 6, 0.5, name)
    shortest = int(str(error.value).split()[-2])
    e = example(task, 0, shortest, 0.5, name)
    assert len(e.prompt) + e.max_new_tokens == shortest
    check(task, name, e)
    with pytest.raises(ValueError, match=f"a prompt of {shortest - 1} tokens"):
        example(task, 0, shortest - 1, 0.5, name)


def test_bad_settings():
    for task in (Niah(), Lines(), VariableTracking(), Mqar()):
        with pytest.raises(ValueError, match=f"{task.name}: depth 1.5 is outside"):
            example(task, 0, 900, 1.5)
    message = "hay 'straw' is not known; choose one of text, noise, needles"
    with pytest.raises(ValueError, match=message):
        Niah(hay="straw")
    with pytest.raises(ValueError, match="niah: 2 of 1 keys"):
        Niah(num_queries=2)
    with pytest.raises(ValueError, match="vt: 1 chains of 0 hops"):
        VariableTracking(hops=0)
    with pytest.raises(ValueError, match="about 4 and about 3 times may be the same"):
        CommonWords(frequent=4)
    with pytest.raises(ValueError, match="num_common is 10, the example has 10 words"):
        CommonWords(shot=(10, 10, 3))
    with pytest.raises(ValueError, match="num_asked is 1 to 8"):
        FrequentWords(num_asked=0)
    message = r"mqar: 60 pairs need more than 120 different tokens, .* of 97"
    with pytest.raises(ValueError, match=message):
        example(Mqar(num_pairs=60), 0, 900, None, "characters")


@few
@given(names, seeds, st.integers(5, 300))
def test_recall_rows_weight_only_predictable_tokens(name, seed, length):
    tokens, weights = Mqar().training_row(context(seed, name), length)
    assert (tokens.shape, tokens.dtype, weights.dtype) == ((length,), np.int32, np.float32)
    assert weights.sum() == pytest.approx(length - 1, rel=1e-5)
    answers = np.flatnonzero(weights)
    assert len(answers) == min(8, (length - 1) // 4)
    for t in answers:
        # Each key occurs twice, with the same value.
        (earlier,) = np.flatnonzero(tokens[: t - 1] == tokens[t - 1])
        assert tokens[earlier + 1] == tokens[t]
    message = "mqar: a training row of 4 tokens cannot hold .* the shortest is 5"
    with pytest.raises(ValueError, match=message):
        Mqar().training_row(context(seed, name), 4)
