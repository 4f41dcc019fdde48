"""Models with a known score go through whole evaluations, which must return exactly that score."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxext import tasks
from ctxext.data.corpus import Corpus
from ctxext.data.sources import TextSource
from ctxext.evals import Perplexity, Retrieval
from ctxext.evals.base import batches, documents
from ctxext.evals.oracle import SURPRISE, ContextCurve, EchoPrompt, PerfectReader, WindowReader
from ctxext.evals.record import EvaluatedModel, read_records
from ctxext.files import append_jsonl
from support.toy_tokenizer import toy_source, toy_tokenizer

TOKENIZER = toy_tokenizer()
SOURCE = toy_source()
PASSKEY = tasks.Passkey(wording="code")  # whose lines are short
GRID = Retrieval(task=PASSKEY, seq_lens=(64, 128, 300), depths=(0.0, 0.5, 1.0), n=4, source=SOURCE)
KV = Retrieval(
    seq_lens=(150, 300),
    depths=(0.0, 0.5, 1.0),
    n=3,
    source=SOURCE,
    task=tasks.KeyValue(num_pairs=4, wording="code"),
)
PPL = Perplexity(
    seq_lens=(64, 128, 512), num_documents=3, target_tokens=32, num_windows=2, source=SOURCE
)


@pytest.mark.parametrize("evaluation", [GRID, KV], ids=["passkey", "kv"])
def test_a_perfect_reader_has_100_percent_and_an_echo_none(evaluation):
    perfect = list(evaluation(PerfectReader(TOKENIZER)))
    echo = list(evaluation(EchoPrompt(TOKENIZER)))
    count = len(evaluation.seq_lens) * len(evaluation.depths) * evaluation.n
    assert len(perfect) == len(echo) == count
    for record in perfect:
        assert record.scores.correct
        assert record.scores.answer_nll == pytest.approx(0.01)
    assert all(record.scores.text.strip() == record.facts["value"] for record in perfect)
    assert not any(record.scores.correct for record in echo)
    assert all(record.scores.answer_nll == SURPRISE for record in echo)
    prompts = [record.question.prompt_sha256 for record in perfect]
    assert prompts == [record.question.prompt_sha256 for record in echo], "not paired"
    assert len(set(prompts)) == len(perfect), "every item has a prompt of its own"
    assert len({record.facts["value"] for record in GRID(EchoPrompt(TOKENIZER))}) > 30


class Bytes:
    """A token per byte, so that ids are the same on every machine."""

    bos_id = 0
    adds_bos = True
    eos_id = 258
    vocab_size = 259
    num_ids = vocab_size

    def encode(self, text, *, bos=False):
        return [0] * bos + [byte + 1 for byte in text.encode()]

    def decode(self, ids):
        return bytes(min(255, max(0, int(i) - 1)) for i in ids).decode(errors="replace")


@dataclasses.dataclass(frozen=True)
class Counting(TextSource):
    """Three documents of numbers."""

    def open(self, tokenizer):
        texts = [" ".join(str(step * i) for i in range(500)) for step in (7, 11, 13)]
        return Corpus.from_texts(texts, tokenizer)


def test_items_and_prompts_do_not_change():
    """Golden hashes: an item name always stands for the same prompt."""
    passkey = Retrieval(
        seq_lens=(128, 1000),
        depths=(0.0, 0.5),
        n=1,
        task=PASSKEY,
        source=Counting(),
    )
    kv = dataclasses.replace(
        passkey, seq_lens=(150,), task=tasks.KeyValue(num_pairs=4, wording="code")
    )
    repeat = dataclasses.replace(
        passkey, seq_lens=(64,), task=tasks.Repeat(num_cue=2, num_answer=2)
    )
    records = [
        record for evaluation in (passkey, kv, repeat) for record in evaluation(EchoPrompt(Bytes()))
    ]
    assert {record.item: record.question.prompt_sha256[:16] for record in records} == {
        "passkey/41db438f/128/0.0/0": "a4412d33f9a52138",
        "passkey/41db438f/128/0.5/0": "b12581e18c63d8db",
        "passkey/41db438f/1000/0.0/0": "c10092449470af51",
        "passkey/41db438f/1000/0.5/0": "d72c8bbadd7ca56c",
        "kv/99627fe5/150/0.0/0": "251b9b1b24f40e18",
        "kv/99627fe5/150/0.5/0": "5d40149afe9f37de",
        "repeat/d7db7c0a/64/0.0/0": "682d0e662332a7bf",
        "repeat/d7db7c0a/64/0.5/0": "33afe9d993377caa",
    }


def test_without_haystack_the_needle_may_be_any_pair():
    bare = dataclasses.replace(KV, condition="needle-only", n=100)
    first = [
        record.question.distances[0] == max(record.question.distances)
        for record in bare(EchoPrompt(TOKENIZER))
    ]
    # One of four, in 600 questions.
    assert 0.2 < np.mean(first) < 0.3


@pytest.mark.parametrize("evaluation", [GRID, KV], ids=["passkey", "kv"])
def test_without_its_needle_a_question_is_lost_and_nothing_else_changes(evaluation):
    control = dataclasses.replace(evaluation, condition="no-needle")
    ordinary = list(evaluation(PerfectReader(TOKENIZER)))
    records = list(control(PerfectReader(TOKENIZER)))
    assert not any(record.scores.correct for record in records)
    haystack = documents(SOURCE, TOKENIZER)
    for cell, ordinary_cell, record, twin in zip(
        control._grid().values(), evaluation._grid().values(), records, ordinary, strict=True
    ):
        assert (record.item, twin.item) == (cell.item, ordinary_cell.item)
        assert cell.item != ordinary_cell.item
        assert record.question.needle_item == twin.item
        assert record.settings == twin.settings
        assert (record.seq_len, record.cluster.document) == (twin.seq_len, twin.cluster.document)
        differing = {"condition", "prompt_sha256"}
        fields = vars(record.question)
        ordinary_fields = vars(twin.question)
        assert {name for name in fields if fields[name] != ordinary_fields[name]} == differing
        prompt = control.ask(TOKENIZER, haystack, [cell])[0].prompt
        ordinary_prompt = evaluation.ask(TOKENIZER, haystack, [ordinary_cell])[0].prompt
        ((start, size),) = record.question.needles
        inside = np.arange(start, start + size)
        assert len(prompt) == len(ordinary_prompt)
        assert set(np.flatnonzero(prompt != ordinary_prompt)) <= set(inside)
        assert record.facts["value"] not in TOKENIZER.decode(prompt[inside].tolist())


@pytest.mark.parametrize("evaluation", [GRID, KV], ids=["passkey", "kv"])
def test_without_its_haystack_a_question_is_as_short_as_it_can_be(evaluation):
    control = dataclasses.replace(evaluation, condition="needle-only")
    records = list(control(PerfectReader(TOKENIZER)))
    ordinary = list(evaluation(PerfectReader(TOKENIZER)))
    for record in records:
        assert record.scores.correct
        assert record.scores.answer_nll == pytest.approx(0.01)
    num_lines = evaluation.task.num_pairs if evaluation is KV else 1
    line = r"\n# (?:key )?\w=\d+\n"
    for cell, record, twin in zip(control._grid().values(), records, ordinary, strict=True):
        assert record.question.gold == twin.question.gold
        assert record.seq_len == twin.seq_len
        assert record.question.depth == twin.question.depth
        assert record.question.condition == "needle-only"
        assert record.question.haystack == ()
        example = control.ask(TOKENIZER, documents(SOURCE, TOKENIZER), [cell])[0]
        text = TOKENIZER.decode(example.prompt[1:].tolist())
        assert re.fullmatch(rf"({line}){{{num_lines}}}\n# (key )?\w=", text)
        assert record.question.tokens == len(example.prompt) + len(example.answer) < cell.seq_len


def test_an_unknown_condition_is_refused():
    with pytest.raises(
        ValueError, match="'haystack' is not known; choose one of needle, no-needle, needle-only"
    ):
        Retrieval(task=PASSKEY, seq_lens=(64,), condition="haystack")  # pyright: ignore[reportArgumentType]


@settings(max_examples=5, deadline=None)
@given(st.integers(20, 310))
def test_the_planted_window_is_recovered(window):
    """A reader of the last W tokens is right exactly at distances up to W - len(answer) + 1."""
    records = list(GRID(WindowReader(TOKENIZER, window)))
    for record in records:
        span = record.question.distance + len(record.question.gold) - 1
        assert record.scores.correct == (span <= window)
        assert (record.scores.answer_nll == pytest.approx(0.01)) == (span <= window)
    at_the_front = {
        record.seq_len: record.scores.correct for record in records if record.question.depth == 0
    }
    assert at_the_front == {seq_len: seq_len - 2 <= window for seq_len in GRID.seq_lens}


def test_records_are_json_exact_in_length_and_name_their_item(tmp_path):
    records = list(GRID(PerfectReader(TOKENIZER)))
    assert [record.item for record in records] == GRID.items()
    for record in records:
        append_jsonl(tmp_path / "records.jsonl", record.to_json())
        assert record.question.tokens == record.seq_len
        assert (record.question.task, record.question.fields) == (
            "passkey",
            {"digits": 5, "wording": "code"},
        )
        assert abs(record.question.depth_achieved - record.question.depth) < 0.03
        assert record.scores.answer_probability == pytest.approx(
            np.exp(sum(record.scores.answer_logprobs))
        )
    assert read_records(tmp_path / "records.jsonl") == records


def test_more_samples_lengths_and_depths_keep_the_old_items():
    more = Retrieval(
        task=PASSKEY, seq_lens=(300, 100, 64, 128), depths=(1.0, 0.75, 0.0, 0.5), n=6, source=SOURCE
    )
    assert set(GRID.items()) < set(more.items())
    chosen = GRID.items()[::7]
    old = [record for record in GRID(PerfectReader(TOKENIZER)) if record.item in chosen]
    new = list(more.records(PerfectReader(TOKENIZER), chosen, EvaluatedModel(256)))
    assert sorted(old, key=lambda r: r.item) == sorted(new, key=lambda r: r.item)
    other_seed = Retrieval(task=PASSKEY, seq_lens=(64, 128, 300), n=4, source=SOURCE, seed=1)
    assert not set(GRID.items()) & set(other_seed.items())
    other_task = Retrieval(
        task=tasks.Passkey(digits=4, wording="code"), seq_lens=(64,), n=1, source=SOURCE
    )
    assert not set(GRID.items()) & set(other_task.items())


def test_the_batch_changes_nothing():
    small = Retrieval(
        task=PASSKEY, seq_lens=(64, 128), depths=(0.3,), n=5, source=SOURCE, batch_tokens=200
    )
    large = Retrieval(
        task=PASSKEY, seq_lens=(64, 128), depths=(0.3,), n=5, source=SOURCE, batch_tokens=9999
    )
    assert list(small(PerfectReader(TOKENIZER))) == list(large(PerfectReader(TOKENIZER)))


@given(st.integers(0, 300), st.integers(0, 70))
@example(5, 2)
def test_batches_keep_the_order_and_waste_little(count, limit):
    parts = list(batches(range(count), limit))
    assert [i for part in parts for i in part] == list(range(count))
    padded = {1 << (len(part) - 1).bit_length() for part in parts}
    assert len(padded) <= 1, "all batches have one shape"
    assert all(size <= max(1, limit) for size in padded)
    assert sum(padded) * len(parts) <= 1.25 * count


def test_a_prompt_that_cannot_fit_is_refused_with_the_minimum():
    with pytest.raises(
        ValueError,
        match=r"^passkey: a prompt of 20 tokens cannot hold .* the shortest is \d+ tokens$",
    ):
        list(Retrieval(task=PASSKEY, seq_lens=(20,), n=1, source=SOURCE)(PerfectReader(TOKENIZER)))


# Perplexity


def curve(seen):
    return 1.2 + 2.5 * (seen + 1.0) ** -0.35


def test_same_target_perplexity_in_closed_form():
    """A loss by tokens seen: targets at length S have seen S - 32 to S - 1 tokens."""
    records = list(PPL(ContextCurve(TOKENIZER, curve)))
    for seq_len in PPL.seq_lens:
        of_length = [record for record in records if record.seq_len == seq_len]
        assert len(of_length) == 6
        assert all(record.scores.count == 32 for record in of_length)
        count = sum(record.scores.count for record in of_length)
        nll = sum(record.scores.nll for record in of_length) / count
        expected = np.mean([1.2 + 2.5 * (c + 1) ** -0.35 for c in range(seq_len - 32, seq_len)])
        assert nll == pytest.approx(expected, rel=1e-6)
    bins = [record.scores.by_position for record in records if record.scores.by_position]
    assert len(bins) == 6
    assert bins[0].edges == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert bins[0].count == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    for low, high, nll in zip(bins[0].edges, bins[0].edges[1:], bins[0].nll, strict=False):
        expected = sum(1.2 + 2.5 * (c + 1) ** -0.35 for c in range(low, high))
        assert nll == pytest.approx(expected, rel=1e-6)


def test_every_length_predicts_the_same_tokens_with_more_context():
    class Recorder(ContextCurve):
        def loss(self, tokens):
            windows.extend(np.asarray(tokens).tolist())
            return super().loss(tokens)

    windows: list[list[int]] = []
    records = list(PPL(Recorder(TOKENIZER, curve)))
    assert [record.item for record in records] == PPL.items()
    by_length = {s: [w for w in windows if len(w) == s] for s in PPL.seq_lens}
    documents = SOURCE.open(TOKENIZER).documents()
    for i, longest in enumerate(by_length[512]):
        assert longest[0] == TOKENIZER.bos_id
        record = records[12 + i]
        end = record.facts["target_start"] + record.scores.count
        np.testing.assert_array_equal(
            longest[1:], documents[record.cluster.document][end - 511 : end]
        )
        for shorter in (64, 128):
            assert by_length[shorter][i] == [TOKENIZER.bos_id, *longest[-shorter + 1 :]]
    targets = [(r.cluster.document, r.facts, r.scores.count, r.scores.num_bytes) for r in records]
    assert targets[:6] == targets[6:12] == targets[12:]
    for record in records:
        start = record.facts["target_start"]
        ids = documents[record.cluster.document][start : start + record.scores.count]
        # A first space is lost when decoded alone.
        assert abs(record.scores.num_bytes - len(TOKENIZER.decode(ids).encode())) <= 1


def test_perplexity_refuses_impossible_lengths():
    with pytest.raises(
        ValueError, match="ppl: target_tokens 64 must be at least 1 and below every length"
    ):
        Perplexity(seq_lens=(64,), target_tokens=64)
    too_long = Perplexity(seq_lens=(50_000,), num_documents=3, source=SOURCE)
    with pytest.raises(
        ValueError,
        match=r"ppl needs 3 documents of at least 49999 tokens, and the text has \d",
    ):
        list(too_long(ContextCurve(TOKENIZER, curve)))
