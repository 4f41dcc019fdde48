"""Too little memory and a full disk: one line that says what to do, and no traceback."""

import errno
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from ctxext.cli.commands import all_commands
from ctxext.cli.main import main, parsers
from ctxext.cli.out_of_memory import ADVICE, is_out_of_memory
from ctxext.files import append_jsonl, atomic_directory, write_bytes

DEVICE = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17.25GiB."
CPU = "RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes."
LINES = {
    "generate": ["tiny-llama", "--prompt", "x"],
    "eval": ["tiny-llama"],
    "export": ["tiny-llama", "--out", "x", "--to", "hf"],
    "train": ["experiments/demo.py"],
    "run": ["experiments/demo.py"],
}


def numpy_error() -> MemoryError:
    with pytest.raises(MemoryError) as raised:
        np.empty(2**58, np.uint8)
    return raised.value


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize(
    ("error", "size"),
    [
        (jax.errors.JaxRuntimeError(DEVICE), " (17.25GiB could not be allocated)"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes."),
            " (64 bytes could not be allocated)",
        ),
        (MemoryError(), ""),
        (numpy_error(), " (256. PiB could not be allocated)"),
    ],
    ids=["gpu", "cpu", "python", "numpy"],
)
def test_out_of_memory_is_one_line(name, error, size, monkeypatch, capsys):
    def run(*_):
        raise error

    monkeypatch.setattr(all_commands()[name], "run", run)
    assert main([name, *LINES[name]]) == 1
    assert capsys.readouterr().err == f"ctxext: out of memory{size}: {ADVICE[name]}\n"


def test_other_errors_of_a_device_are_not_taken_for_it():
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: bad address"))
    assert not is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left"))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


def test_the_advice_names_options_that_there_are():
    _, by_command = parsers()
    for name in ("generate", "eval", "harness", "export"):
        for word in ADVICE[name].replace(",", " ").replace("(", " ").replace(")", " ").split():
            if word.startswith("--"):
                assert word in by_command[name]._option_string_actions, (name, word)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_the_file_and_the_bytes(tmp_path: Path, monkeypatch, capsys):
    def one_write_too_many() -> None:
        with atomic_directory(tmp_path / "out") as directory:
            (directory / "first").write_bytes(b"x" * 1500)
            full()

    def run(*_):
        one_write_too_many()

    monkeypatch.setattr(all_commands()["export"], "run", run)
    assert main(["export", *LINES["export"]]) == 2
    error = capsys.readouterr().err
    start = f"ctxext: {tmp_path / 'out'}: No space left on device (1,500 bytes of it were written, "
    assert error.startswith(start)
    assert error.endswith(" are free)\n")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_bytes(tmp_path / "file", b"x")
    assert raised.value.filename == str(tmp_path / "file")


def test_a_line_that_does_not_fit_names_the_file():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    from ctxext import files

    with pytest.raises(OSError, match="a line has 9 bytes") as raised:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "waiting_lock", lambda path: open("/dev/full", "rb+"))
            append_jsonl("records.jsonl", {"a": 1})
    assert raised.value.filename == "records.jsonl"
