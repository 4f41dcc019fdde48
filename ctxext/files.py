"""Files that are either whole or absent: temporary name, fsync, rename.

Whoever is at work on a temporary name holds a lock on it, so that the next one removes what a killed process left.
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_file(where: Path, prefix: str) -> Path:
    descriptor, name = tempfile.mkstemp(dir=where, prefix=prefix)
    os.close(descriptor)
    return Path(name)


def _new_directory(where: Path, prefix: str) -> Path:
    return Path(tempfile.mkdtemp(dir=where, prefix=prefix))


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _remove_left(where: Path, prefix: str) -> None:
    """Remove the temporaries of `prefix` that nobody holds locked; all of them are of this host, as the prefix says."""
    for path in where.iterdir():
        if path.name.startswith(prefix) and len(path.name) == len(prefix) + 8:
            with contextlib.suppress(
                OSError
            ):  # it is at work, has gone, or the file system has no locks
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
                finally:
                    os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[[Path, str], Path]) -> Iterator[Path]:
    """A hidden sibling, locked while the block runs; those of processes that were killed are removed before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.{zlib.crc32(platform.node().encode()):08x}."
    _remove_left(path.parent, prefix)
    temporary = descriptor = None
    while descriptor is None or temporary is None:
        temporary = make(path.parent, prefix)
        with contextlib.suppress(
            FileNotFoundError
        ):  # removed before it was locked: another one is made
            descriptor = os.open(temporary, os.O_RDONLY)
            with contextlib.suppress(
                OSError
            ):  # a file system without locks; then nothing is removed in it either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if descriptor is not None and not temporary.exists():
            os.close(descriptor)
            descriptor = None
    try:
        yield temporary
    except BaseException:
        _remove(temporary)
        raise
    finally:
        os.close(descriptor)
    _sync(path.parent)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling; it replaces `path` in one step when the block succeeds, or is removed."""
    path = Path(path)
    with _temporary(path, _new_file) as temporary:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes private files
        _sync(temporary)
        os.replace(temporary, path)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data` in one step; a reader sees the old file or the new one."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Like `write_bytes`, for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON (no NaN, no Infinity). Raises ValueError if the value holds any."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read one JSON file. Raises ValueError that names the file if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be what it should be") from None
    except ValueError as error:  # also bytes that are no text
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def within(directory: str | Path, name: str) -> Path:
    """The path of the file `name` in `directory`.

    Raises ValueError if it is a link to somewhere else, other than from a snapshot of the hub's cache to its blobs.
    """
    path, home = Path(directory) / name, Path(directory).resolve()
    target = path.resolve()
    cache = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    if not any(target.is_relative_to(place) for place in (home, *cache)):
        raise ValueError(
            f"{path} is a link to {target}, outside the directory; put a copy there instead"
        )
    return path


def append_jsonl(path: str | Path, row: dict[str, Any]) -> None:
    """Append one row; a line is written in one call, so that a crash tears at most the last one.

    Several processes may append to one file: each holds it locked meanwhile.
    """
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with Path(path).open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end:  # a torn last line is cut off before anything is added
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a torn last line is dropped. Raises ValueError naming any other bad line."""
    if not Path(path).exists():
        return []
    lines = (
        Path(path).read_bytes().split(b"\n")[:-1]
    )  # what follows the last line end is torn, or nothing
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
    return rows


def check_free(path: str | Path) -> None:
    """Raise ValueError if `path` exists and is not an empty directory."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} already exists; choose another directory or remove it first")


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling; rename it to `path` when the block succeeds, remove it when it fails.

    Raises ValueError if `path` exists and is not an empty directory.
    """
    path = Path(path)
    check_free(path)
    with _temporary(path, _new_directory) as temporary:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            file.chmod(0o755 if file.is_dir() else 0o644)  # some writers make private files
            _sync(file)
        os.replace(temporary, path)  # replaces an empty directory
