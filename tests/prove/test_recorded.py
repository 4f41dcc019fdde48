"""The proof next to an export: what it records, what is found later, and what may replace it."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.export import export
from ctxext.methods import Yarn
from ctxext.model.lm import LM
from ctxext.prove import describe, prove
from ctxext.prove.file_digests import file_digests
from ctxext.publish import Publication
from support.llamas import TINY, WINDOW, random_params, tokenizer


def model() -> LM:
    return LM(TINY, random_params(), tokenizer(), scaling=Yarn(4.0))


@pytest.fixture(autouse=True)
def no_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture(scope="module")
def proven(tmp_path_factory) -> Path:
    """An export with the proof that its run made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        card = {"method": "yarn", "base model": "owner/m", "license": "mit"}
        out = export(model(), tmp_path_factory.mktemp("export") / "m", card=card)
        assert prove(out, against=model())["equal"]
    return out


@pytest.fixture
def copy(proven, tmp_path) -> Path:
    return Path(shutil.copytree(proven, tmp_path / "m"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_bit(out: Path) -> None:
    """The lowest bit of the last number, which no reader sees in its logits."""
    path = out / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def other_epsilon(out: Path) -> None:
    edit(out / "config.json", rms_norm_eps=1.1e-5)


def other_factor(out: Path) -> None:
    for form in ("rope_scaling", "rope_parameters"):
        rope = json.loads((out / "config.json").read_text())[form]
        edit(out / "config.json", **{form: rope | {"factor": 8.0}})


def one_merge(out: Path) -> None:
    """Two neighbours far down the list change places: no sample text has either."""
    data = json.loads((out / "tokenizer.json").read_text())
    merges = data["model"]["merges"]
    merges[-40], merges[-41] = merges[-41], merges[-40]
    (out / "tokenizer.json").write_text(json.dumps(data))


def no_settings(out: Path) -> None:
    (out / "tokenizer_config.json").unlink()


def new_file(out: Path) -> None:
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))


@pytest.mark.parametrize(
    "change, found",
    [
        (flip_a_bit, "model.safetensors (changed)"),
        pytest.param(other_epsilon, "config.json (changed)", marks=pytest.mark.check),
        pytest.param(other_factor, "config.json (changed)", marks=pytest.mark.check),
        (one_merge, "tokenizer.json (changed)"),
        (no_settings, "tokenizer_config.json (missing)"),
        (new_file, "generation_config.json (new)"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_file_that_changed_since_the_proof_is_named(copy, change, found, capsys):
    recorded = (copy / "proof.json").read_bytes()
    card = (copy / "README.md").read_bytes()
    change(copy)
    assert main(["prove", str(copy)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("proof: NOT EQUAL")
    assert f"CHANGED SINCE THEN: {found}\n" in text
    # The readers alone would have seen nothing.
    assert "EQUAL to our own reading" in text and "token ids equal" in text
    assert (copy / "proof.json").read_bytes() == recorded
    assert (copy / "README.md").read_bytes() == card


def test_the_digests_are_those_of_sha256sum(copy):
    recorded = json.loads((copy / "proof.json").read_text())["files"]
    assert recorded == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in copy.iterdir()
        if path.name not in ("README.md", "proof.json")
    }
    assert len(recorded) == 5


def test_what_was_proven_may_be_published_until_it_changes(copy):
    published = Publication.of(copy, "owner/m-yarn")
    assert set(published.files) == {path.name for path in copy.iterdir()}
    flip_a_bit(copy)
    with pytest.raises(ValueError, match=r"proves: model\.safetensors \(changed\)"):
        Publication.of(copy, "owner/m-yarn")


def test_a_weaker_proof_never_replaces_a_stronger_one(copy, capsys):
    recorded = (copy / "proof.json").read_bytes()
    assert main(["prove", str(copy)]) == 0
    text = capsys.readouterr().out
    assert "EQUAL to our own reading of the export" in text
    assert "not the files with the model that was exported: name it with --against" in text
    assert f"{copy / 'proof.json'} is kept: EQUAL to the model that was exported" in text
    assert "all 5 files are those of that proof, by sha256" in text
    assert (copy / "proof.json").read_bytes() == recorded
    assert "EQUAL to the model that was exported" in (copy / "README.md").read_text()


def test_prose_may_be_edited(copy):
    (copy / "README.md").write_text("mine")
    (copy / "LICENSE").write_text("Apache-2.0")
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert prove(copy)["equal"]


def test_a_proof_of_the_files_alone_finds_a_later_change_too(copy):
    (copy / "proof.json").unlink()
    first = prove(copy)
    assert first["equal"] and not first["compared_with_model"]
    assert json.loads((copy / "proof.json").read_text()) == first
    assert prove(copy) == first
    flip_a_bit(copy)
    assert prove(copy)["files_that_differ"] == {"model.safetensors": "changed"}
    assert json.loads((copy / "proof.json").read_text()) == first
    # What the user meant to change is proven anew.
    (copy / "proof.json").unlink()
    assert prove(copy)["equal"]
    # The model itself is the stronger comparison, and finds the bit.
    stronger = prove(copy, against=model())
    assert stronger["weights_that_differ"] == ["lm_head.weight"]
    assert json.loads((copy / "proof.json").read_text()) == stronger
    assert not prove(copy)["equal"], "it is recorded that this is another model"


def test_what_keeps_files_from_being_read_is_told_with_the_change(copy):
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"changed since .*proof.json .*tokenizer.json \(changed\)"
    ):
        prove(copy)
    (copy / "proof.json").write_text("{}")
    with pytest.raises(ValueError, match="proof.json is not a proof with digests .*; remove it"):
        prove(copy)


def test_a_proof_is_no_signature(copy):
    """Whoever changes a file can write its digest too; the model tells them apart."""
    other_epsilon(copy)
    proof = json.loads((copy / "proof.json").read_text())
    edit(copy / "proof.json", files=proof["files"] | file_digests(copy))
    assert prove(copy)["equal"]
    assert not prove(copy, against=model())["equal"]


def test_an_export_is_not_compared_with_itself(copy):
    with pytest.raises(ValueError, match="is the export itself; name the run or the checkpoint"):
        prove(copy, against=copy)


def test_a_gguf_file_has_its_own_digest(tmp_path):
    pytest.importorskip("gguf")
    out = export(model(), tmp_path / "m.gguf", to="gguf", dtype="float32")
    prove(out, against=model())
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert json.loads((tmp_path / "m.proof.json").read_text())["files"] == {"m.gguf": digest}
    with out.open("ab") as file:
        file.write(b"\0")
    proof = prove(out)
    assert not proof["equal"]
    assert proof["files_that_differ"] == {"m.gguf": "changed"}


def test_links_to_other_places_are_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="is a link to /etc/hostname, outside the directory"):
        file_digests(tmp_path / "m")


@pytest.mark.parametrize(
    "name, changes, found",
    [
        (
            "config.json",
            {"rms_norm_eps": 1.1e-5},
            "rms_norm_eps in config.json is 1.1e-05, not 1e-05",
        ),
        ("config.json", {"eos_token_id": 7}, "eos_token_id in config.json is (7,), not (2,)"),
        (
            "config.json",
            {"max_position_embeddings": 512},
            "the window that it declares is 512, not 256 (give --method or --seq-len if it was "
            "exported with one)",
        ),
        ("tokenizer_config.json", {"pad_token": "<unk>"}, "pad_token is '<unk>', not None"),
        (
            "tokenizer_config.json",
            {"chat_template": "{{ messages }}"},
            "the chat template is not that of the model",
        ),
    ],
)
def test_settings_that_no_reader_sees_are_compared_with_the_model(copy, name, changes, found):
    edit(copy / name, **changes)
    proof = prove(copy, against=model())
    assert not proof["equal"]
    assert proof["settings_that_differ"] == [found]
    assert f"NOT THE MODEL'S: {found}" in describe(proof)


def test_the_whole_vocabulary_is_compared_with_the_model(copy):
    one_merge(copy)
    proof = prove(copy, against=model())
    assert all(reader["token_ids_equal"] for reader in proof["readers"])
    assert proof["settings_that_differ"] == ["merges in tokenizer.json is not that of the model"]
    assert not proof["equal"]


def test_a_window_that_was_asked_for_is_given_again(tmp_path):
    lm = LM(TINY, random_params(), tokenizer())
    out = export(lm, tmp_path / "m", dtype="float32", seq_len=100)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 100
    assert prove(out, against=lm, seq_len=100)["equal"]
    (found,) = prove(out, against=lm)["settings_that_differ"]
    assert found.startswith(f"the window that it declares is 100, not {WINDOW}")
    with pytest.raises(ValueError, match="--seq-len is of the model .* name it with --against"):
        prove(out, seq_len=100)


def test_another_reader_with_another_vocabulary_is_noticed(copy, monkeypatch):
    from ctxext.prove.reference.hf import HFReference

    other = tokenizer().vocabulary | {399: "x"}
    monkeypatch.setattr(HFReference, "vocabulary", lambda self: other)
    proof = prove(copy)
    assert proof["readers"][0]["token_ids_equal"]
    assert not proof["equal"]
    assert "VOCABULARY DIFFERS" in describe(proof)
