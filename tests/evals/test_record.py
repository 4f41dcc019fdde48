"""Evaluation records: JSON and back, labels made from parts, and errors that name file and line."""

import dataclasses
import json

import pytest

from ctxext.evals.record import (
    AnswerRecord,
    AnswerScores,
    Cluster,
    EvaluatedModel,
    LossEstimator,
    LossRecord,
    LossScores,
    PositionLosses,
    Question,
    RecoveryRecord,
    RecoveryScores,
    WindowLosses,
    from_json,
    read_records,
)

MODEL = EvaluatedModel(window=256, rope="yarn(factor=4)", steps=60, train_seq_len=1024)
ANSWER = AnswerRecord(
    model=MODEL,
    evaluation="retrieval",
    item="passkey/aa/512/0.5/3",
    settings="aa",
    seq_len=512,
    cluster=Cluster(document=7, text="passkey/aa/512/0.5/3"),
    facts={"value": "12345"},
    question=Question(
        task="passkey",
        fields={"digits": 5},
        condition="needle",
        needle_item="passkey/aa/512/0.5/3",
        tokens=512,
        prompt_sha256="ab",
        gold=(1, 2),
        depth=0.5,
        depth_achieved=0.49,
        needles=((250, 12),),
        distance=262,
        distances=(262,),
        haystack=((7, 0, 250), (7, 250, 250)),
    ),
    scores=AnswerScores(
        prediction=(1, 3),
        text="17",
        metric="exact",
        score=0.0,
        correct=False,
        answer_logprobs=(-0.5, -2.0),
        answer_nll=1.25,
        answer_probability=0.08,
        choices=4,
        chosen=True,
        failure="made up",
    ),
)
LOSSES = LossRecord(
    model=EvaluatedModel(window=256, checkpoint="base"),
    evaluation="ppl:yarn",
    item="ppl:yarn/bb/512/0",
    settings="bb",
    seq_len=512,
    cluster=Cluster(document=3, text="ppl:yarn/bb/512/0"),
    estimator=LossEstimator("yarn", mean="window", stride=256),
    scores=LossScores(
        nll=12.5,
        count=8,
        num_bytes=30,
        windows=WindowLosses((7.5, 5.0), (4, 4)),
        by_position=PositionLosses((1, 2, 4), (7.5, 5.0), (4, 4)),
    ),
)


RECOVERY = RecoveryRecord(
    model=MODEL,
    evaluation="recovery",
    item="recovery/passkey/cc/512/0.5/3",
    settings="cc",
    seq_len=512,
    cluster=Cluster(document=7, text="recovery/passkey/cc/512/3"),
    question=dataclasses.replace(ANSWER.question, needle_item="recovery/passkey/cc/512/0.5/3"),
    scores=RecoveryScores(nll=2.5, nll_without=11.0, nll_alone=0.5, count=2),
)


@pytest.mark.parametrize("record", [ANSWER, LOSSES, RECOVERY])
def test_records_survive_json(record):
    assert from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


def test_default_values_are_not_written():
    assert LOSSES.to_json()["model"] == {"window": 256, "checkpoint": "base"}
    assert "facts" not in LOSSES.to_json()
    assert ANSWER.to_json()["facts"] == {"value": "12345"}


def test_each_kind_of_record_has_its_own_measurement():
    assert ANSWER.measurement == ("passkey", 512, "accuracy")
    assert LOSSES.measurement == ("ppl:yarn", 512, "perplexity")
    assert ANSWER.beyond_window


def test_labels_are_made_from_parts():
    assert MODEL.label == "yarn(factor=4), 60 steps at 1024"
    assert dataclasses.replace(MODEL, steps=0).label == "yarn(factor=4), zero-shot"
    alone = EvaluatedModel(window=256, rope="linear(factor=2)", attention="lm-infinite", steps=60)
    assert alone.label == "linear(factor=2) + lm-infinite"
    assert not alone.is_plain
    assert EvaluatedModel(window=256).label == "none"
    assert EvaluatedModel(window=256).is_plain
    in_suite = dataclasses.replace(ANSWER.question, suite="ruler-exact", label="vt")
    assert (ANSWER.question.title, in_suite.title) == ("passkey", "ruler-exact/vt")


def changed(record, path: str, value) -> dict:
    """The JSON of a record with one part replaced."""
    data = record.to_json()
    *parents, name = path.split(".")
    part = data
    for parent in parents:
        part = part[parent]
    part[name] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kind", "speed", "kind is 'speed', not one of answer, losses"),
        ("seq_len", "512", "seq_len is '512', not of type int"),
        ("seq_len", True, "seq_len is True, not of type int"),
        ("model", [], r"model is \[\], not an object"),
        ("extra", 1, "record has unknown fields: extra"),
        ("question", {"task": "passkey"}, "question lacks condition, fields, gold, needle_item"),
        ("question.condition", "some", "condition is 'some', not one of needle, no-needle"),
        ("question.depth", "deep", "depth is 'deep', not of type float"),
        ("question.gold", [1, None], "gold is None, not of type int"),
        ("scores.correct", 1, "correct is 1, not of type bool"),
        ("cluster.document", None, "document is None, not of type str"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, path, value, message):
    file = tmp_path / "records.jsonl"
    lines = [json.dumps(ANSWER.to_json()), json.dumps(changed(ANSWER, path, value))]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"records.jsonl, line 2, .* of this version: {message}"):
        read_records(file)


def test_a_torn_last_line_is_dropped(tmp_path):
    file = tmp_path / "records.jsonl"
    assert read_records(file) == []
    file.write_text(json.dumps(LOSSES.to_json()) + '\n{"kind": "ans')
    assert read_records(file) == [LOSSES]
