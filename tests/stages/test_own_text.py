"""Evaluations of a run's own held-out text: what they read, and when they are left out."""

import dataclasses
from pathlib import Path

import pytest

from ctxext.data import Files, Mix, OwnHeldOut, Split, Stdlib
from ctxext.data.held_out import is_held_out
from ctxext.evals import Perplexity
from ctxext.serialization import from_json, to_json
from ctxext.stages import own_text
from ctxext.stages.own_text import for_estimate, with_own_text
from support.tiny_train import ByteTokenizer, tiny_experiment

OWN = Perplexity((32, 64, 128), target_tokens=8, source=OwnHeldOut(), label="own")
OTHER = Perplexity((32,), target_tokens=8)
SHARE = 0.5


def texts(directory: Path, lengths: list[int], *, held_out: bool = True) -> Path:
    """Documents of these lengths in bytes that are held out, or that are not."""
    directory.mkdir()
    for number, length in enumerate(lengths):
        candidates = (f"{number} {i} ".ljust(length, "x") for i in range(1000))
        text = next(text for text in candidates if is_held_out(text, SHARE) == held_out)
        (directory / f"{held_out}-{number}.txt").write_text(text)
    return directory


def experiment(source, **train):
    settings = {"held_out": SHARE, **train}
    return dataclasses.replace(tiny_experiment(source, **settings), evals=(OTHER, OWN))


def test_it_reads_the_documents_that_training_does_not_see(tmp_path):
    source = Files(str(texts(tmp_path / "a", [20, 63, 64, 200, 127])))
    asked, notes = with_own_text(experiment(source), ByteTokenizer())
    other, own = asked.evals
    assert other == OTHER
    # 127 bytes and BOS are 128 tokens.
    assert own == dataclasses.replace(OWN, source=Split(source, "heldout", SHARE), num_documents=2)
    assert notes == ()
    assert own.title == "ppl:own" and all(item.startswith("ppl:own/") for item in own.items())
    assert [len(document.ids) for document in own._documents(ByteTokenizer())] != []
    mixed, _ = with_own_text(experiment(Mix(((1.0, source),))), ByteTokenizer())
    assert mixed.evals == asked.evals


def test_lengths_that_no_document_has_are_left_out_and_said(tmp_path):
    source = Files(str(texts(tmp_path / "a", [20, 64, 70])))
    asked, notes = with_own_text(experiment(source), ByteTokenizer())
    assert asked.evals[1].seq_lens == (32, 64)
    assert asked.evals[1].num_documents == 2
    assert notes == (
        "ppl:own is not measured at 128 tokens: no document that is held out of training is as "
        "long; give longer documents, or a larger --train.held-out",
    )


@pytest.mark.parametrize("case", ["short", "none", "share of 0", "no training", "not there"])
def test_without_any_it_is_left_out(case, tmp_path):
    directory = texts(tmp_path / "a", [10] if case == "short" else [200], held_out=case != "none")
    source = Files(str(tmp_path / "b" if case == "not there" else directory))
    train = {"share of 0": {"held_out": 0.0}, "no training": {"steps": 0}}.get(case, {})
    asked, (note,) = with_own_text(experiment(source, **train), ByteTokenizer())
    assert asked.evals == (OTHER,)
    expected = "ppl:own is not measured: no document is held out of training"
    if case == "short":
        expected = "ppl:own is not measured at 32 and 64 and 128 tokens: no document that"
    elif case == "none":
        expected = f"ppl:own is not measured: {directory}: none of 1 document is held out of train"
    assert note.startswith(expected)
    if case != "not there":  # of which an estimate counts other text
        assert for_estimate(experiment(source, **train), ByteTokenizer()) == (asked, (note,))


def test_an_estimate_counts_what_the_run_reads(tmp_path, monkeypatch):
    own = experiment(Files(str(texts(tmp_path / "a", [20, 64, 70]))))
    found = with_own_text(own, ByteTokenizer())
    assert found.experiment.evals[1].seq_lens == (32, 64) and found.notes
    assert for_estimate(own, ByteTokenizer()) == found
    # So much text is only read by the run.
    monkeypatch.setattr(own_text, "MOST_BYTES", 153)
    estimated, (note,) = for_estimate(own, ByteTokenizer())
    assert estimated.evals == (OTHER, dataclasses.replace(OWN, source=Stdlib("heldout")))
    assert note.startswith("ppl:own is counted as of other text at all of its lengths")
    monkeypatch.setattr(own_text, "MOST_BYTES", 154)
    assert for_estimate(own, ByteTokenizer()) == found


def test_an_estimate_reads_other_text_and_nobody_else_reads_it():
    own = experiment(Files("nowhere"))
    for tokenizer in (None, ByteTokenizer()):
        estimated, notes = for_estimate(own, tokenizer)
        assert estimated.evals == (OTHER, dataclasses.replace(OWN, source=Stdlib("heldout")))
        assert notes == ()
        assert for_estimate(estimated).experiment is estimated
    assert from_json(to_json(OWN)) == OWN
    with pytest.raises(ValueError, match="is known to `ctxext run`; elsewhere name it: Split"):
        OwnHeldOut().open(ByteTokenizer())
