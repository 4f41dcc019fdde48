"""Files that are either complete or absent: temporary name, fsync, rename.

A process that writes under a temporary name holds a lock on it, so that the next process can tell
what a killed one left and remove it.
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

FOLLOW_LINKS = "CTXEXT_FOLLOW_LINKS"
"""An environment variable, which child processes inherit; see `following_links`."""
RANDOM_SUFFIX = 8
"""Characters that tempfile adds to a prefix."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_file(parent: Path, prefix: str) -> Path:
    descriptor, name = tempfile.mkstemp(dir=parent, prefix=prefix)
    os.close(descriptor)
    return Path(name)


def _new_directory(parent: Path, prefix: str) -> Path:
    return Path(tempfile.mkdtemp(dir=parent, prefix=prefix))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the temporaries with `prefix` that no process holds locked.

    The prefix names the host, as locks of another host may not be visible here.
    """
    for path in parent.iterdir():
        if not path.name.startswith(prefix) or len(path.name) != len(prefix) + RANDOM_SUFFIX:
            continue
        # Skip one that is in use or already gone, and file systems without locks.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def _lock_new(create: Callable[[Path, str], Path], parent: Path, prefix: str) -> tuple[Path, int]:
    """A new temporary and the descriptor that holds its lock."""
    while True:
        temporary = create(parent, prefix)
        # Another process may remove it before it is locked; then another one is created.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY)
            # Without locks in the file system, nothing is removed in it either.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if temporary.exists():
                return temporary, descriptor
            os.close(descriptor)


def check_parent(path: Path) -> None:
    """Raise ValueError if a file is in the place of a directory of `path`."""
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{path} cannot be written, because {parent} is a file")


def make_parent(path: Path) -> None:
    """Create the directory of `path`. Raises ValueError as `check_parent` does."""
    check_parent(path)
    path.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _temporary(path: Path, create: Callable[[Path, str], Path]) -> Iterator[Path]:
    """A hidden sibling of `path`, locked while the block runs and removed if it fails.

    Siblings that killed processes left are removed first.
    """
    make_parent(path)
    host = zlib.crc32(platform.node().encode())
    prefix = f".{path.name}.{host:08x}."
    _remove_abandoned(path.parent, prefix)
    temporary, descriptor = _lock_new(create, path.parent, prefix)
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
    """Yield a temporary sibling that replaces `path` in one step when the block succeeds.

    If the block fails it is removed.
    """
    path = Path(path)
    with _temporary(path, _new_file) as temporary:
        yield temporary
        temporary.chmod(0o644)  # mkstemp creates private files
        _sync(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling that is renamed to `path` when the block succeeds.

    If the block fails it is removed. Raises ValueError if `path` exists and is not an empty
    directory.
    """
    path = Path(path)
    check_free(path)
    with _temporary(path, _new_directory) as temporary:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            file.chmod(0o755 if file.is_dir() else 0o644)  # some writers create private files
            _sync(file)
        os.replace(temporary, path)  # replaces an empty directory


def check_free(path: str | Path) -> None:
    """Raise ValueError if `path` exists and is not an empty directory."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} already exists; choose another directory or remove it first")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the contents of `path` in one step: a reader sees the old file or the new one."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Like `write_bytes`, for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write strict JSON. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises ValueError naming the file if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be what it should be") from None
    except ValueError as error:  # also for bytes that are not text
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def refuse_lfs_pointer(path: Path) -> None:
    """Raise ValueError if Git left a pointer in place of a large file."""
    beginning = b"version https://git-lfs"
    with path.open("rb") as file:
        if file.read(len(beginning)) == beginning:
            raise ValueError(f"{path} is a pointer of Git LFS, not the file; run: git lfs pull")


def within(directory: str | Path, name: str) -> Path:
    """The path of the file `name` in `directory`.

    Raises ValueError if it is a link to another place, except from a snapshot in the hub's cache to
    that cache's blobs, and except while links are followed.
    """
    path = Path(directory) / name
    target = path.resolve()
    is_inside = not os.path.normpath(name).startswith((os.pardir, os.sep))
    if is_inside and os.environ.get(FOLLOW_LINKS):
        return path
    home = Path(directory).resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise ValueError(
            f"{path} is a link to {target}, outside the directory; put a copy there instead, or "
            "allow it with --follow-links (in Python: with ctxext.files.following_links():)"
        )
    return path


@contextlib.contextmanager
def following_links() -> Iterator[None]:
    """Read checkpoints whose files are links to other places, here and in child processes.

    A directory of such links with its own config.json tries other settings on weights of any size.
    """
    before = os.environ.get(FOLLOW_LINKS)
    os.environ[FOLLOW_LINKS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FOLLOW_LINKS]
        else:
            os.environ[FOLLOW_LINKS] = before


@contextlib.contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock on `path`. Raises ValueError with `message` if another process holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(message) from None
        yield


def append_jsonl(path: str | Path, record: dict[str, Any]) -> None:
    """Append one line of JSON to a file, which several processes may do at once.

    The file is locked meanwhile, and the line is written in one call, so that a crash tears at most
    the last line; a torn last line is cut off first.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    with Path(path).open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, [] if it does not exist; a torn last line is dropped.

    Raises ValueError naming any other line that is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    # Whatever follows the last line end is empty or torn.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
    return records
