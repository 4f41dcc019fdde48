"""Files where a directory belongs, and the reverse: one line that says what to give."""

from pathlib import Path

import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main

RECIPE = str(Path(__file__).parents[2] / "experiments" / "extend.py")
CONFIG = str(TINY_LLAMA / "config.json")
BASE = ("--init", str(TINY_LLAMA))
WEIGHTS = str(TINY_LLAMA / "model.safetensors")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    *said, error = capsys.readouterr().err.splitlines()
    # What prepare reads is said before it writes.
    assert all(line.startswith("prepare: reads ") for line in said)
    assert "Errno" not in error
    return error.removeprefix("ctxext: ")


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS, "file.txt"])
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "FILE", "--prompt", "a"],
        ["eval", "FILE", "--evals", "ppl"],
        ["export", "FILE", "--out", "out"],
        ["import", "FILE", "--out", "out"],
        ["prove", "FILE"],
        ["run", RECIPE, "--init", "FILE", "--data.path", "file.txt"],
        ["run", RECIPE, "--init", "FILE", "--data.path", "file.txt", "--dry-run"],
        ["plan", RECIPE, "--init", "FILE"],
    ],
    ids=lambda argv: argv[0] + ("-dry" if "--dry-run" in argv else ""),
)
def test_a_file_is_not_a_checkpoint(command, file, here, capsys):
    argv = [file if word == "FILE" else word for word in command]
    assert refusal(argv, capsys) == (
        f"{file} is a file; a checkpoint is a directory: give the one that it is in, "
        f"{Path(file).parent}"
    )
    assert {path.name for path in here.iterdir()} == {"file.txt", "empty"}


@pytest.mark.parametrize("path", ["file.txt", "empty", "gone"])
def test_a_path_that_is_not_an_adapter_is_named(path, here, capsys):
    argv = ["generate", "tiny-llama", "--prompt", "a", "--adapter", path]
    message = f"{path} has no adapter_config.json; give a PEFT directory"
    assert refusal(argv, capsys) == message


def test_a_path_that_is_not_a_tokenizer_is_named(here, capsys):
    argv = ["prepare", "file.txt", "--out", "out", "--tokenizer"]
    assert refusal([*argv, "file.txt"], capsys) == (
        "file.txt is not a tokenizer: give tokenizer.model, tokenizer.json, or the directory of a "
        "checkpoint"
    )
    assert main([*argv, str(TINY_LLAMA / "tokenizer.json")]) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["export", "tiny-llama", "--out", "file.txt/out"],
        ["eval", "tiny-llama", "--evals", "ppl", "--out", "file.txt"],
        ["prepare", "text.txt", "--tokenizer", str(TINY_LLAMA), "--out", "file.txt/out"],
        ["run", RECIPE, *BASE, "--data.path", "text.txt", "--run-dir", "file.txt/out"],
    ],
    ids=lambda argv: argv[0],
)
def test_a_file_in_the_place_of_a_directory_to_write(argv, here, capsys):
    (here / "text.txt").write_text("text")
    assert "cannot be written, because file.txt is a file" in refusal(argv, capsys)
