"""Files are complete or absent, even when a write fails halfway."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ctxext.files import (
    append_jsonl,
    atomic_directory,
    atomic_file,
    read_json,
    read_jsonl,
    write_bytes,
    write_json,
    write_text,
)


def test_write_replaces_in_one_step(tmp_path: Path):
    path = tmp_path / "new" / "file.txt"
    write_text(path, "één\n")
    assert path.read_bytes() == "één\n".encode()
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch, broken: str
):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_json_is_strict(tmp_path: Path):
    path = tmp_path / "x.json"
    write_json(path, {"a": [1, 2.5, None, "ü"]})
    assert read_json(path) == json.loads(path.read_text()) == {"a": [1, 2.5, None, "ü"]}
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert read_json(path)["a"][0] == 1, "the previous file is still there"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
def test_bad_json_names_the_file(tmp_path: Path, content: bytes):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match="x.json is not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match="y.json does not exist"):
        read_json(tmp_path / "y.json")


def test_a_directory_or_a_file_in_the_way_is_named_without_a_number(tmp_path: Path):
    write_text(tmp_path / "file", "text")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path)
    with pytest.raises(ValueError, match=r"file/x\.json does not exist"):
        read_json(tmp_path / "file" / "x.json")
    for name in ("file/x", "file/sub/x"):
        path = tmp_path / name
        message = f"{path} cannot be written, because {tmp_path / 'file'} is a file"
        with pytest.raises(ValueError) as error:
            write_text(path, "text")
        assert str(error.value) == message


def test_rows_keep_unusual_text(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    texts = ["a", "line\nbreak", "\u2028\x0b\x85", "ü"]
    rows = [{"n": i, "text": text} for i, text in enumerate(texts)]
    for row in rows:
        append_jsonl(path, row)
    assert read_jsonl(path) == rows
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_jsonl(path) == rows, "only a line feed ends a row"
    assert read_jsonl(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("torn", ['{"n": 2', '{"n": 2}', '{"text": "\\u00'])
def test_a_torn_last_line_is_dropped_by_reader_and_writer_alike(tmp_path: Path, torn: str):
    """A line without its end counts as never written, so that a resumed run writes it again."""
    path = tmp_path / "records.jsonl"
    append_jsonl(path, {"n": 1})
    with path.open("a") as file:
        file.write(torn)
    assert read_jsonl(path) == [{"n": 1}]
    append_jsonl(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, {"n": 3}]


def test_a_file_of_one_torn_line_starts_over(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"n"')
    assert read_jsonl(path) == []
    append_jsonl(path, {"n": 1})
    assert path.read_text() == '{"n": 1}\n'


def test_a_bad_line_in_the_middle_is_an_error(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"n": 1}\n{"n"\n{"n": 3}\n')
    with pytest.raises(ValueError, match="records.jsonl, line 2"):
        read_jsonl(path)
    with pytest.raises(ValueError):
        append_jsonl(path, {"n": float("inf")})


def test_a_directory_appears_whole(tmp_path: Path):
    out = tmp_path / "a" / "out"
    with atomic_directory(out) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "file").write_text("x")
        assert not out.exists()
        assert directory.parent == out.parent
    assert (out / "sub" / "file").read_text() == "x"
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert os.listdir(out.parent) == ["out"]


def test_a_failed_directory_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "out") as directory:
        (directory / "file").write_text("x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_directory_never_replaces_anything(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as directory:
        (directory / "file").write_text("x")
    for taken in (tmp_path / "empty", tmp_path / "empty" / "file"):
        with pytest.raises(ValueError, match="already exists"), atomic_directory(taken):
            pytest.fail("must not get here")
    assert (tmp_path / "empty" / "file").read_text() == "x"


HOLD = """
import sys, time
from ctxext import files

with getattr(files, sys.argv[1])(sys.argv[2]) as path:
    (path / "part" if path.is_dir() else path).write_text("half")
    print(path, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("kind", [atomic_directory, atomic_file])
def test_the_leftovers_of_a_killed_process_are_removed_and_those_of_a_live_one_kept(
    tmp_path: Path, kind
):
    """Two processes write the same path and one is killed: the next removes only its leftovers."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, kind.__name__, str(out)]
    dead, live = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2))
    try:
        dead_path, live_path = (
            Path(str(process.stdout and process.stdout.readline()).strip())
            for process in (dead, live)
        )
        assert dead_path.exists()
        assert live_path.exists()
        dead.kill()
        dead.wait()
        unrelated = tmp_path / f"{dead_path.name}.mine"  # only begins like a temporary file
        unrelated.write_text("x")
        assert dead_path.exists()
        assert not out.exists()
        with kind(out) as path:
            assert path not in (dead_path, live_path)
            assert not dead_path.exists()
            assert live_path.exists()
            assert unrelated.exists()
            (path / "file" if path.is_dir() else path).write_text("whole")
        assert (out / "file" if out.is_dir() else out).read_text() == "whole"
        assert live_path.exists()
    finally:
        for process in (dead, live):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def test_several_processes_append_to_one_file(tmp_path: Path):
    path = tmp_path / "records.jsonl"
    code = (
        "import sys; from ctxext.files import append_jsonl\n"
        "for i in range(200):\n"
        "    append_jsonl(sys.argv[1], {'writer': sys.argv[2], 'i': i, 'text': 'x' * 5000})"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), writer]) for writer in "012"
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    rows = read_jsonl(path)
    for writer in "012":
        assert [row["i"] for row in rows if row["writer"] == writer] == list(range(200))
