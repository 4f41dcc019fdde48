"""Documents held out of training: a share by the hash of their text, the same wherever it is."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ctxext import loading
from ctxext.cli import options
from ctxext.cli.main import main
from ctxext.data import (
    Files,
    Mix,
    Prepared,
    Short,
    Source,
    Split,
    Stdlib,
    Synthetic,
    Upsampled,
    corpora,
)
from ctxext.data.held_out import HELD_OUT
from ctxext.data.sources import haystack
from ctxext.experiment import Train
from ctxext.prepare import Recipe, prepare
from ctxext.rundir import RunDir
from ctxext.serialization import from_json, to_json
from ctxext.tasks import Passkey
from support.tiny_train import ByteTokenizer, tiny_experiment

SHARE = 0.2
TOKENIZER: Any = ByteTokenizer()


def texts(count: int) -> list[str]:
    return [f"document {i} of many\n  with two lines" for i in range(count)]


def by_definition(text: str, share: float) -> bool:
    digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
    return int(digest[:16], 16) < share * 2**64


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """JSON lines, and some of the same documents in other files with other white space."""
    root = tmp_path_factory.mktemp("texts") / "in"
    root.mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(60))
    (root / "a.jsonl").write_text(lines)
    for i, text in enumerate(texts(12)):
        (root / f"{i}.txt").write_text(text.replace("\n", "\r\n") + "\n\n")
    return root


def documents(source: Source) -> list[str]:
    (corpus,) = corpora(source.open(TOKENIZER))
    return [bytes(int(i) - 3 for i in ids).decode() for ids in corpus.documents()]


def normal(found: list[str]) -> set[str]:
    return {" ".join(text.split()) for text in found}


def test_both_parts_are_the_whole_and_equal_documents_are_on_one_side(folder):
    source = Files(str(folder))
    train = documents(Split(source, "train", SHARE))
    held_out = documents(Split(source, "heldout", SHARE))
    assert len(train) + len(held_out) == 72
    assert sorted(train + held_out) == sorted(documents(source))
    assert not normal(train) & normal(held_out)
    assert normal(held_out) == {
        " ".join(text.split()) for text in texts(60) if by_definition(text, SHARE)
    }
    assert len(held_out) > len(normal(held_out)) > 5  # some of them are there twice


def test_prepared_text_holds_out_the_same_documents(folder, tmp_path):
    recipe = Recipe(held_out=SHARE)
    prepare([folder], tmp_path / "out", TOKENIZER, recipe=recipe, progress=False)
    for split in ("train", "heldout"):
        prepared = documents(Prepared(str(tmp_path / "out"), split))
        assert prepared == documents(Split(Files(str(folder)), split, SHARE))


def test_training_sees_no_held_out_document_in_any_source(folder):
    files = Files(str(folder))
    mix = Mix(
        (
            (1.0, Short(files, 40)),
            (1.0, Upsampled(files, 30, 3.0)),
            (1.0, Synthetic(Passkey(), files)),
            (1.0, Stdlib("train")),
        )
    )
    experiment = tiny_experiment(mix, held_out=SHARE)
    opened = list(corpora(experiment.training_data.open(TOKENIZER)))
    assert len(opened) == 4
    held_out = normal(documents(Split(files, "heldout", SHARE)))
    for corpus in opened[:3]:
        seen = {bytes(int(i) - 3 for i in ids).decode() for ids in corpus.documents()}
        assert not normal(list(seen)) & held_out
        assert corpus.held_out and corpus.held_out.documents > 5
    parts = list(experiment.data.held_out_parts(SHARE))
    assert parts == [Split(files, "heldout", SHARE)] * 3 + [Stdlib("heldout")]
    assert from_json(to_json(parts[0])) == parts[0]
    none = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, held_out=0))
    assert none.training_data is mix


def test_a_share_of_the_users_own_text_is_held_out_by_default(folder):
    assert tiny_experiment(folder).training_data == Split(Files(str(folder)), "train", 0.01)
    assert Recipe().held_out == 0.01


def test_a_share_that_comes_to_nothing_is_said_with_one_that_does_not(folder):
    (corpus,) = corpora(Split(Files(str(folder)), "train", 1e-6).open(TOKENIZER))
    assert corpus.held_out
    note = corpus.held_out.note
    assert "none of 72 documents is held out of training: a share of 1e-06 comes to noth" in note
    (share,) = re.findall(r"--train.held-out (\S+) \(in eval, --held-out \1\) holds one out", note)
    assert documents(Split(Files(str(folder)), "heldout", float(share)))
    (corpus,) = corpora(Split(Files(str(folder / "0.txt")), "train", 1e-6).open(TOKENIZER))
    assert corpus.held_out
    assert "none of 1 document is held out" in corpus.held_out.note
    assert "it takes more documents" in corpus.held_out.note
    with pytest.raises(ValueError, match="all of its documents .1. are held out of training"):
        Split(Files(str(folder / "0.txt")), "train", 0.999999).open(TOKENIZER)


def test_eval_reads_the_documents_that_training_holds_out(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    prepare([folder], out, TOKENIZER, recipe=Recipe(held_out=SHARE), progress=False)
    source = haystack(str(folder), held_out=SHARE)
    assert documents(source) == documents(haystack(str(out)))
    for name in ("stdlib", str(out)):
        with pytest.raises(ValueError, match="has no share to hold out: files of text do"):
            haystack(name, held_out=SHARE)

    def opened(*arguments, **settings):
        raise ValueError("the model would be opened now")

    monkeypatch.setattr(options, "open_named_model", opened)

    def error(*words: str) -> str:
        assert main(["eval", "tiny-llama", "--haystack", str(folder), "--held-out", *words]) == 2
        return capsys.readouterr().err

    count = len(documents(source))
    note = f"{folder}: {count} of 72 documents held out of training"
    assert note in error(str(SHARE))
    assert note in error(str(SHARE), "--books", str(folder), "--evals", "growing-window")
    nothing = error("1e-6")
    assert "none of 72 documents is held out of training: a share of 1e-06 comes" in nothing
    assert "would be opened" not in nothing
    assert "the share held out must be above 0 and below 1, got 0.0" in error("0")
    # A name on the hub is no run, and is not downloaded before the texts are looked at.
    argv = ["eval", "owner/model", "--haystack", str(folder), "--held-out", str(SHARE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "locate", lambda source: pytest.fail("it would be downloaded"))
        assert main(argv) == 2
    assert note in capsys.readouterr().err
    # The one of `train.held_out`, which is nested in any larger one.
    assert f"a share of {HELD_OUT:g} comes to nothing here" in error()
    monkeypatch.setattr(loading, "is_run", lambda path: True)
    monkeypatch.setattr(RunDir, "settings", lambda self: {"train": {"held_out": SHARE}})
    assert note in error(str(SHARE))
    assert f"held a share of {SHARE:g} out of training, and may have seen" in error("0.3")
    monkeypatch.setattr(RunDir, "settings", lambda self: {"train": {}})
    assert "held a share of 0 out of training" in error(str(SHARE))

    # Prepared data holds out what `ctxext prepare` did, whatever `train.held_out` is.
    def trained_on(*sources: Source, held_out: float) -> None:
        data = to_json(Mix(tuple((1.0, source) for source in sources)))
        settings = {"train": {"held_out": held_out}, "data": data}
        monkeypatch.setattr(RunDir, "settings", lambda self: settings)

    for source in (Prepared(str(out)), Files(str(out)), Split(Files(str(folder)), "train", SHARE)):
        trained_on(source, held_out=0.01)
        assert note in error(str(SHARE))
        trained_on(source, held_out=0.5)
        assert f"held a share of {SHARE:g} out of training, and may have seen" in error("0.3")
    trained_on(Prepared(str(out)), Files(str(folder)), held_out=0.1)
    assert "held a share of 0.1 out of training, and may have seen" in error(str(SHARE))
    trained_on(Split(Files(str(folder)), "heldout", SHARE), held_out=0.1)
    assert "held a share of 0 out of training" in error(str(SHARE))
    trained_on(Prepared(str(tmp_path / "gone")), held_out=0.1)
    assert "gone, which is not here: what that held out of training is not known" in error("0.1")


def test_prepare_holds_out_by_default_and_says_when_nothing_is(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--held-out SHARE The share .{,140} Default: 0\.01\.", printed)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts(8)))
    argv = ["prepare", str(tmp_path / "a.jsonl"), "--tokenizer", "tiny-llama", "--out"]
    assert not any(by_definition(text, 0.01) for text in texts(8))
    assert main([*argv, str(tmp_path / "few")]) == 0
    assert "none of 8 documents is held out: --held-out 0.01 comes" in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "none"), "--held-out", "0"]) == 0
    assert "is held out" not in capsys.readouterr().out
    assert main([*argv, str(tmp_path / "all"), "--held-out", "0.999999"]) == 2
    message = "all documents of .*a.jsonl .8. are held out of training by --held-out 0.999999"
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "all" / "index.json").exists()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_from_0_to_below_1(share):
    with pytest.raises(ValueError, match="train.held_out is a share from 0 to below 1"):
        Train(steps=1, seq_len=8, batch_size=1, held_out=share)
