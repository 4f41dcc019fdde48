"""Files are complete or absent, even when a write fails halfway."""

import ast
import errno
import fcntl
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ctxext
from ctxext.files import (
    append_jsonl,
    atomic_directory,
    atomic_file,
    check_places,
    exclusive_lock,
    read_json,
    read_jsonl,
    touch,
    write_bytes,
    write_json,
    write_text,
)
from support.umask import umask


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


def test_a_directory_is_written_by_one_process_until_it_ends_or_is_killed(tmp_path: Path):
    """The second one is told by which; after a kill the next one removes what it left."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, "atomic_directory", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        dead_path = Path(process.stdout.readline().strip())
        with pytest.raises(ValueError, match=f"out is being written by process {process.pid} on "):
            _directory(out)
        assert (dead_path / "part").exists()
    finally:
        process.kill()
        process.communicate()
    assert dead_path.exists()
    _directory(out)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [atomic_file])
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


@pytest.mark.parametrize(("mask", "file_mode"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
def test_the_umask_decides_who_may_read_what_is_written(tmp_path: Path, mask: int, file_mode: int):
    with umask(mask):
        write_text(tmp_path / "file", "text")
        append_jsonl(tmp_path / "lines", {"n": 1})
        with exclusive_lock(tmp_path / "lock", "locked", "wait"):
            pass
        with atomic_directory(tmp_path / "out") as directory:
            (directory / "sub").mkdir()
            write_text(directory / "sub" / "file", "text")
    for name in ("file", "lines", "lock", "out/sub/file"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == file_mode, name
    for name in ("out", "out/sub"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o777 & ~mask, name


def test_a_lock_says_who_holds_it_and_ends_with_its_holder(tmp_path: Path):
    path = tmp_path / "lock"
    path.write_text("\x1b[2J")  # left by a stranger, held by no one
    message = rf"^it is used by process {os.getpid()} on [\w.-]+ since 20\d\d-\d\d-.*; wait$"
    for remove in (False, True):
        with exclusive_lock(path, "it is used", "wait", remove=remove):
            with (
                pytest.raises(ValueError, match=message),
                exclusive_lock(path, "it is used", "wait"),
            ):
                pass
            held = path.read_text()
            path.write_text('{"pid": 1, "host": "\x1b[2J", "since": "2026-01-01"}')
            with pytest.raises(ValueError, match="^it is used by another process; wait$"):
                with exclusive_lock(path, "it is used", "wait"):
                    pass
            path.write_text(held)
        assert path.exists() != remove


def test_a_lock_that_its_holder_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Between opening the file and locking it; else two processes would hold two files."""
    path = tmp_path / "lock"
    real = fcntl.flock
    removed = []

    def flock(file, operation):
        if not removed:
            removed.append(path.unlink())
        real(file, operation)

    monkeypatch.setattr("ctxext.files.fcntl.flock", flock)
    with exclusive_lock(path, "", ""):
        monkeypatch.undo()
        with pytest.raises(ValueError), exclusive_lock(path, "", ""):
            pass


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("ctxext.files.fcntl.flock", flock)
    with exclusive_lock(tmp_path / "lock", "", ""):
        pass
    append_jsonl(tmp_path / "lines", {"n": 1})
    told = f"{tmp_path} is in a file system without locks: let no second process write there\n"
    assert capsys.readouterr().err == told


def test_two_processes_do_not_write_one_directory(tmp_path: Path):
    out = tmp_path / "out"
    message = rf"out is being written by process {os.getpid()} on .*; wait for it, stop it, or choo"
    with atomic_directory(out) as first:
        with pytest.raises(ValueError, match=message), atomic_directory(out):
            pass
        (first / "file").write_text("first")
    assert os.listdir(tmp_path) == ["out"]
    assert (out / "file").read_text() == "first"
    (tmp_path / ".next.lock").touch()  # left by a process that was killed
    with atomic_directory(tmp_path / "next"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["next", "out"]


def _lock(path: Path) -> None:
    with exclusive_lock(path, "locked", "wait"):
        pass


def _directory(path: Path) -> None:
    with atomic_directory(path):
        pass


WRITERS: dict[str, Callable[[Path], object]] = {
    "write_text": lambda path: write_text(path, "ours"),
    "write_json": lambda path: write_json(path, {}),
    "append_jsonl": lambda path: append_jsonl(path, {"n": 1}),
    "exclusive_lock": _lock,
    "touch": touch,
    "atomic_directory": _directory,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("kind", ["link to a file", "link to nothing", "hard link", "pipe"])
def test_nothing_is_written_through_what_a_stranger_put_there(tmp_path: Path, kind: str, write):
    """The file outside stays as it is, none is created, and nothing waits for a pipe."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("theirs")
    given = tmp_path / "given"
    given.mkdir()
    path = given / "place"
    if kind == "link to a file":
        path.symlink_to(victim)
    elif kind == "link to nothing":
        path.symlink_to(outside / "new")
    elif kind == "hard link":
        path.hardlink_to(victim)
    else:
        os.mkfifo(path)
    if kind == "hard link" and write in (WRITERS["write_text"], WRITERS["write_json"]):
        write(path)  # which replaces the name and leaves the file alone
    else:
        with pytest.raises(ValueError, match="place"):
            write(path)
        assert os.listdir(given) == ["place"]
    assert victim.read_text() == "theirs"
    assert os.listdir(outside) == ["victim"]


def test_a_directory_that_is_a_link_is_named_and_the_one_that_the_user_names_may_be_one(
    tmp_path: Path,
):
    (tmp_path / "disk" / "run").mkdir(parents=True)
    run = tmp_path / "run"
    run.symlink_to(tmp_path / "disk" / "run")
    (run / "base").mkdir()
    check_places(run, "base", "base/*", "absent")
    write_text(run / "base" / "file", "text")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "4").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="checkpoints/4 is a link to .*nothing is written through"):
        check_places(run, "base", "checkpoints", "checkpoints/*")


def test_what_only_looks_like_a_temporary_of_ours_is_not_followed(tmp_path: Path):
    """A pipe or a link under the name of a leftover neither stops a writer nor is followed."""
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    with atomic_file(tmp_path / "file") as temporary:
        prefix = temporary.name[:-8]
    os.mkfifo(tmp_path / f"{prefix}00000000")
    (tmp_path / f"{prefix}11111111").symlink_to(victim)
    write_text(tmp_path / "file", "ours")
    assert (tmp_path / "file").read_text() == "ours"
    assert victim.read_text() == "theirs"


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_a_file_that_would_never_end_is_refused(tmp_path: Path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(ValueError, match=f"{name} is not a plain file"):
            read(tmp_path / name)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="sparse has 1,099,511,627,776 bytes, more than the"):
        read(tmp_path / "sparse")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10_000_000, "nested too deeply"),
        ('{"a":' * 1_000_000, "nested too deeply"),
        ("9" * 10_000_000, "not valid JSON: Exceeds the limit"),
    ],
)
def test_json_that_would_take_minutes_or_the_stack_is_refused(
    tmp_path: Path, text: str, message: str
):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=f"x.json is {message}"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.jsonl").write_text(f"{text}\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1"):
        read_jsonl(tmp_path / "x.jsonl")


OPEN_FILES_THEMSELVES = {
    "bench/files.py": "in a temporary directory",
    "evals/ruler_generators.py": "in a temporary directory",
    "interop/pth_writer.py": "in the temporary directory of an export",
    "interop/safetensors_files.py": "in the temporary directory of an export",
    "parallel/distributed.py": "os.devnull",
    "prepare/encode.py": "in a temporary file of files.py",
    "prepare/join.py": "in a temporary directory of files.py",
}
"""Files that open others to write, and why no stranger's link can be there."""


def _opens_to_write(call: ast.AST) -> bool:
    if not isinstance(call, ast.Call):
        return False
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if isinstance(function, ast.Attribute) and ast.unparse(function.value) in ("files", "os"):
        return False
    modes = [ast.literal_eval(x) for x in call.args if isinstance(x, ast.Constant)]
    is_mode = any(
        isinstance(mode, str) and re.fullmatch("[wax]b?|rb?[+]b?", mode) for mode in modes
    )
    is_method = isinstance(function, ast.Attribute)
    return (name == "open" and is_mode) or (is_method and name in ("write_text", "write_bytes"))


def test_every_file_is_opened_by_the_writers_that_refuse_links():
    package = Path(ctxext.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(_opens_to_write(node) for node in ast.walk(ast.parse(path.read_text())))
    }
    assert found == {"files.py", *OPEN_FILES_THEMSELVES}
