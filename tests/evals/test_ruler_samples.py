"""RULER's samples from files: nothing cut, every sample its own item, scores and places as they can be counted."""

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
    """A made-up sample in the fields of the benchmark, its number behind so many sentences."""
    text = (
        WALL * before
        + f"The number of the boat is {value}. "
        + WALL * after
        + "Which number has the boat?"
    )
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
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))  # without a last line end
    return tmp_path


@pytest.fixture
def samples(directory):
    return Samples(str(directory), 512, "made up")


def asked(sample: dict) -> list[int]:
    """What a model has to be shown."""
    return TOKENIZER.encode(sample["input"] + sample.get("answer_prefix", ""), bos=True)


def test_who_knows_the_answers_has_100_percent_and_an_echo_none(samples):
    perfect = list(samples(AnswerKey.of(samples, TOKENIZER)))
    assert (
        all(row.scores.correct and row.scores.answer_nll == pytest.approx(0.01) for row in perfect)
        and len(perfect) == 5
    )
    assert not any(row.scores.score for row in samples(EchoPrompt(TOKENIZER)))


def test_rows_say_what_was_asked_and_nothing_is_cut(samples, tmp_path):
    rows = list(samples(AnswerKey.of(samples, TOKENIZER)))
    assert sorted(row.item for row in rows) == sorted(samples.items())
    assert len(set(samples.items())) == len(rows) == 5  # though their `index` is the same
    given = {tuple(row["outputs"]): row for found in SAMPLES.values() for row in found}
    room = {"niah_single_1": 128, "vt": 30, "qa_2": 32}
    short = {
        row.item.split("/")[-1]: row
        for row in Samples(samples.path, 64, "made up")(EchoPrompt(TOKENIZER))
    }
    for row in rows:
        ids, task = asked(given[tuple(row.facts["references"])]), row.question.task
        assert (
            row.question.prompt_sha256
            == hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()
        )
        assert row.question.tokens == len(ids) + room[task]
        assert row.seq_len == 512
        assert (
            row.question.fields["variant"] == "made up"
            and row.question.condition == "needle"
            and row.question.haystack == ()
        )
        assert row.facts["stated_tokens"] == (99 if task == "niah_single_1" else None)
        twin = short[row.item.split("/")[-1]]
        assert twin.question.prompt_sha256 == row.question.prompt_sha256
        assert twin.question.tokens == row.question.tokens > twin.seq_len
        append_jsonl(tmp_path / "records.txt", row.to_json())
    assert read_records(tmp_path / "records.txt") == rows
    assert len({row.cluster.document for row in rows}) == 5  # each its own unit of chance
    assert {row.question.title for row in rows} == {f"made up/{task}" for task in room}
    assert samples.measurements() == [
        (task, 512, "accuracy") for task in ("niah_single_1", "qa_2", "vt")
    ]


def test_a_needle_is_where_its_text_is(samples):
    rows = [row for row in samples(EchoPrompt(TOKENIZER)) if row.question.task == "niah_single_1"]
    for row in rows:
        (sample,) = [
            s
            for s in SAMPLES["niah_single_1/validation.jsonl"]
            if s["outputs"] == row.facts["references"]
        ]
        ids, ((start, size),) = asked(sample), row.question.needles
        assert (
            row.facts["references"][0] in TOKENIZER.decode(ids[start : start + size]) and size < 10
        )
        assert row.question.distance == len(ids) - start and row.question.distances == (
            row.question.distance,
        )
        assert (
            row.question.depth_achieved == start / len(ids)
            and abs(row.question.depth - row.question.depth_achieved) <= 0.125
        )
    assert sorted(row.question.depth for row in rows) == [0, 0.5, 0.75]
    others = [row for row in samples(EchoPrompt(TOKENIZER)) if row.question.task != "niah_single_1"]
    for row in others:
        question = row.question
        assert (question.depth, question.depth_achieved, question.distance) == (None, None, None)


def test_the_planted_window_comes_back(samples):
    distances = {
        row.item: row.question.distance
        for row in samples(EchoPrompt(TOKENIZER))
        if row.question.distance
    }
    for window in (40, 200, 300, 500):
        for row in samples.records(
            AnswerKey.of(samples, TOKENIZER, window=window), distances, EvaluatedModel(256)
        ):
            assert row.scores.correct == (
                distances[row.item] + len(row.question.gold) - 1 <= window
            )


def test_part_of_the_answers_is_part_of_the_score(samples):
    def two(ids):
        return encode_fragment(TOKENIZER, " ".join(TOKENIZER.decode(ids).lower().split(", ")[:2]))

    scores = {
        row.question.task: row.scores.score
        for row in samples(AnswerKey.of(samples, TOKENIZER, manner=two))
    }
    assert scores == {
        "niah_single_1": 1,
        "vt": pytest.approx(2 / 3),
        "qa_2": 1,
    }  # of two names for a place one will do


def test_the_first_samples_and_batches_keep_their_names_and_rows(samples):
    first = Samples(samples.path, 512, "made up", n=1)
    assert len(first.items()) == 3 and set(first.items()) < set(samples.items())
    one = Samples(samples.path, 512, "made up", batch_tokens=1)
    assert list(one(EchoPrompt(TOKENIZER))) == list(samples(EchoPrompt(TOKENIZER)))
    other = Samples(samples.path, 512, "another benchmark")
    assert not set(other.items()) & set(samples.items())


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
        ("vt.txt", "", "holds no .jsonl file"),
    ],
)
def test_what_is_no_sample_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Samples(str(tmp_path), 512, "made up").items()


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"vt.jsonl cannot be read \(No such file"):
        Samples(str(tmp_path / "vt.jsonl"), 512, "made up").items()
