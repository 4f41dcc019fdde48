"""RULER's samples from files: nothing is cut, and each sample is its own item."""

import hashlib
import json

import numpy as np
import pytest

from ctxext.evals.oracle import AnswerKey, EchoPrompt
from ctxext.evals.record import EvaluatedModel, read_records
from ctxext.evals.ruler_samples import Samples
from ctxext.files import append_jsonl
from ctxext.tasks.base import encode_fragment
from support.toy_tokenizer import toy_tokenizer

TOKENIZER = toy_tokenizer()
WALL = "Nobody came to the harbour that day. "


def needle(value: str, before: int, after: int) -> dict:
    """A made-up sample with the fields of the benchmark: a number after `before` sentences."""
    fact = f"The number of the boat is {value}. "
    text = WALL * before + fact + WALL * after + "Which number has the boat?"
    return {
        "index": 7,
        "input": text,
        "answer_prefix": " The boat has the number",
        "outputs": [value],
        "length": 99,
    }


SAMPLES = {
    "niah_single_1/validation.jsonl": [
        needle("8402517", 0, 20),
        needle("1175930", 12, 12),
        needle("6620984", 30, 10),
    ],
    "vt.jsonl": [
        {
            "index": 0,
            "input": f"AB = 1 CD = AB EF = CD. {WALL * 4}Say: ",
            "outputs": ["AB", "CD", "EF"],
        }
    ],
    "qa_2/validation.jsonl": [
        {"index": 0, "input": f"{WALL}Where? Answer:", "outputs": ["quay", "pier"]}
    ],
}


@pytest.fixture
def directory(tmp_path):
    for name, rows in SAMPLES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        # Without a line end after the last line.
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def samples(directory):
    return Samples(str(directory), 512, "made up")


def prompt_ids(sample: dict) -> list[int]:
    """The ids that a model reads."""
    return TOKENIZER.encode(sample["input"] + sample.get("answer_prefix", ""), bos=True)


def test_an_answer_key_scores_100_percent_and_an_echo_nothing(samples):
    perfect = list(samples(AnswerKey.of(samples, TOKENIZER)))
    for record in perfect:
        assert record.scores.correct
        assert record.scores.answer_nll == pytest.approx(0.01)
    assert len(perfect) == 5
    assert not any(record.scores.score for record in samples(EchoPrompt(TOKENIZER)))


def test_records_describe_the_question_and_nothing_is_cut(samples, tmp_path):
    records = list(samples(AnswerKey.of(samples, TOKENIZER)))
    assert sorted(record.item for record in records) == sorted(samples.items())
    # All are different, though some have the same `index`.
    assert len(set(samples.items())) == len(records) == 5
    by_answer = {tuple(s["outputs"]): s for samples in SAMPLES.values() for s in samples}
    room = {"niah_single_1": 128, "vt": 30, "qa_2": 32}
    short = {
        record.item.split("/")[-1]: record
        for record in Samples(samples.path, 64, "made up")(EchoPrompt(TOKENIZER))
    }
    for record in records:
        ids = prompt_ids(by_answer[tuple(record.facts["references"])])
        task = record.question.task
        sha256 = hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()
        assert record.question.prompt_sha256 == sha256
        assert record.question.tokens == len(ids) + room[task]
        assert record.seq_len == 512
        assert record.question.fields["variant"] == "made up"
        assert record.question.condition == "needle"
        assert record.question.haystack == ()
        assert record.facts["stated_tokens"] == (99 if task == "niah_single_1" else None)
        twin = short[record.item.split("/")[-1]]
        assert twin.question.prompt_sha256 == record.question.prompt_sha256
        assert twin.question.tokens == record.question.tokens > twin.seq_len
        append_jsonl(tmp_path / "records.txt", record.to_json())
    assert read_records(tmp_path / "records.txt") == records
    # Each sample is its own cluster.
    assert len({record.cluster.document for record in records}) == 5
    assert {record.question.title for record in records} == {f"made up/{task}" for task in room}
    assert samples.measurements() == [
        (task, 512, "accuracy") for task in ("niah_single_1", "qa_2", "vt")
    ]


def test_a_needle_is_where_its_text_is(samples):
    records = [
        record
        for record in samples(EchoPrompt(TOKENIZER))
        if record.question.task == "niah_single_1"
    ]
    for record in records:
        (sample,) = [
            s
            for s in SAMPLES["niah_single_1/validation.jsonl"]
            if s["outputs"] == record.facts["references"]
        ]
        ids = prompt_ids(sample)
        ((start, size),) = record.question.needles
        assert record.facts["references"][0] in TOKENIZER.decode(ids[start : start + size])
        assert size < 10
        assert record.question.distance == len(ids) - start
        assert record.question.distances == (record.question.distance,)
        assert record.question.depth_achieved == start / len(ids)
        assert abs(record.question.depth - record.question.depth_achieved) <= 0.125
    assert sorted(record.question.depth for record in records) == [0, 0.5, 0.75]
    others = [
        record
        for record in samples(EchoPrompt(TOKENIZER))
        if record.question.task != "niah_single_1"
    ]
    for record in others:
        question = record.question
        assert (question.depth, question.depth_achieved, question.distance) == (None, None, None)


def test_the_planted_window_is_recovered(samples):
    distances = {
        record.item: record.question.distance
        for record in samples(EchoPrompt(TOKENIZER))
        if record.question.distance
    }
    for window in (40, 200, 300, 500):
        reader = AnswerKey.of(samples, TOKENIZER, window=window)
        for record in samples.records(reader, distances, EvaluatedModel(256)):
            span = distances[record.item] + len(record.question.gold) - 1
            assert record.scores.correct == (span <= window)


def test_partial_answers_have_partial_scores(samples):
    def two(ids):
        answers = TOKENIZER.decode(ids).lower().split(", ")
        return encode_fragment(TOKENIZER, " ".join(answers[:2]))

    scores = {
        record.question.task: record.scores.score
        for record in samples(AnswerKey.of(samples, TOKENIZER, manner=two))
    }
    # Of two names for a place, one is enough.
    assert scores == {"niah_single_1": 1, "vt": pytest.approx(2 / 3), "qa_2": 1}


def test_fewer_samples_and_other_batches_keep_items_and_records(samples):
    first = Samples(samples.path, 512, "made up", n=1)
    assert len(first.items()) == 3
    assert set(first.items()) < set(samples.items())
    one_by_one = Samples(samples.path, 512, "made up", batch_tokens=1)
    assert list(one_by_one(EchoPrompt(TOKENIZER))) == list(samples(EchoPrompt(TOKENIZER)))
    other_name = Samples(samples.path, 512, "another benchmark")
    assert not set(other_name.items()) & set(samples.items())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("story.jsonl", "{}", "story.jsonl is not named after a task of RULER"),
        ("vt.jsonl", '{"input": "a"}', "vt.jsonl, line 1, is not a sample of RULER: 'outputs'"),
        (
            "vt.jsonl",
            '{"input": "a", "outputs": []}',
            "line 1, is not a sample of RULER: outputs must be texts",
        ),
        (
            "vt.jsonl",
            '{"input": "a", "outputs": ["b"]}\n{',
            "vt.jsonl, line 2, is not a sample of RULER",
        ),
        (
            "vt.jsonl",
            '{"input": "\\ud83d", "outputs": ["b"]}',
            "vt.jsonl, line 1, is not a sample of RULER: .*surrogates not allowed",
        ),
        ("vt.txt", "", "holds no .jsonl file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Samples(str(tmp_path), 512, "made up").items()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"vt.jsonl cannot be read \(No such file"):
        Samples(str(tmp_path / "vt.jsonl"), 512, "made up").items()
