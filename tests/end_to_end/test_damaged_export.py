"""A run that is repeated over an export that someone changed: it is written again, or refused."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.methods import Yarn
from ctxext.prove.file_digests import file_digests
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer

EXPERIMENT = """
from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Export, Train
from ctxext.methods import Yarn
from ctxext.optim import Optim

experiment = Experiment(
    name="damaged", init={init!r}, rope=Yarn(factor=4.0), data=Stdlib("train"),
    optim=Optim(learning_rate=1e-3), train=Train(steps=0, seq_len=256, batch_size=1),
    evals=(), zero_shot=(), baselines=(), export=Export(to={to!r}, dtype="float32"),
)
"""


@pytest.fixture(scope="module", autouse=True)
def no_transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "hf"
    write_hf(path, TINY, random_params(), Yarn(4.0), tokenizer(), dtype="float32", seq_len=256)
    return path


def experiment(base: Path, folder: Path, to: str) -> list[str]:
    """The command that runs the experiment in `folder`."""
    file = folder / "experiment.py"
    file.write_text(EXPERIMENT.format(init=str(base), to=to))
    return ["run", str(file), "--run-dir", str(folder / "run"), "--no-wandb"]


def edit_config(out: Path) -> None:
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1.1e-5}))


def remove(name: str):
    return lambda out: (out / name).unlink()


DAMAGES = {
    "config.json edited": (edit_config, "changed since it was proven: config.json (changed)"),
    "no weights": (remove("model.safetensors"), "model.safetensors (missing)"),
    "no tokenizer": (remove("tokenizer.json"), "tokenizer.json (missing)"),
    "no proof, no weights": (
        lambda out: [(out / name).unlink() for name in ("proof.json", "model.safetensors")],
        "has neither model.safetensors nor",
    ),
    "a proof that is none": (
        lambda out: (out / "proof.json").write_text("{}"),
        "is not a proof with digests",
    ),
}


def assert_written_again(command: list[str], out: Path, names: Iterable[str], capsys) -> None:
    digests = file_digests(out)
    proof = (out / "proof.json").read_text()
    for name in names:
        damage, reason = DAMAGES[name]
        damage(out)
        capsys.readouterr()
        assert main(command) == 0
        printed = capsys.readouterr()
        assert f"{out} is replaced: " in printed.err and reason in printed.err
        assert "proof: EQUAL to the model that was exported" in printed.out
        assert file_digests(out) == digests
        assert (out / "proof.json").read_text() == proof


def test_a_directory_that_was_edited_is_written_again(base, tmp_path, capsys):
    command = experiment(base, tmp_path, "hf")
    out = tmp_path / "run" / "export"
    assert main(command) == 0
    assert_written_again(command, out, ["config.json edited"], capsys)
    # A file of the user's is not deleted with the export.
    (out / "notes.txt").write_text("mine")
    (out / "model.safetensors").unlink()
    assert main(command) == 2
    assert "notes.txt, which this run did not write; move that" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert main(command) == 0
    assert "model.safetensors (missing)" in capsys.readouterr().err
    assert (out / "model.safetensors").is_file()


@pytest.mark.check
def test_every_damage_is_repaired_and_nothing_else_is_lost(base, tmp_path, capsys):
    command = experiment(base, tmp_path, "hf")
    out = tmp_path / "run" / "export"
    assert main(command) == 0
    proof = (out / "proof.json").read_text()
    assert_written_again(command, out, DAMAGES, capsys)
    # A proof alone is made again, and a card may be edited.
    (out / "proof.json").unlink()
    (out / "README.md").write_text("mine")
    assert main(command) == 0
    assert "is replaced" not in capsys.readouterr().err
    assert (out / "README.md").read_text() == "mine"
    assert (out / "proof.json").read_text() == proof


def test_a_file_that_was_cut_off_is_written_again(base, tmp_path, capsys):
    pytest.importorskip("gguf")
    command = experiment(base, tmp_path, "gguf")
    out = tmp_path / "run" / "export" / "model.gguf"
    assert main(command) == 0
    whole = out.read_bytes()
    beside = out.with_name("mine.txt")
    beside.write_text("mine")
    out.write_bytes(whole[:-100])
    capsys.readouterr()
    assert main(command) == 0
    assert "model.gguf is replaced: changed since it was proven" in capsys.readouterr().err
    assert out.read_bytes() == whole
    assert beside.read_text() == "mine"


def test_a_run_whose_export_is_not_equal_fails(base, tmp_path, capsys, monkeypatch):
    from ctxext.prove.reference.hf import HFReference

    monkeypatch.setattr(HFReference, "vocabulary", lambda self: {})
    assert main(experiment(base, tmp_path, "hf")) == 1
    assert "proof: NOT EQUAL to the model that was exported" in capsys.readouterr().out
