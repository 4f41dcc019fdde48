"""Files that are either complete or absent: temporary name, fsync, rename.

A process that writes under a temporary name holds a lock on it, so that the next process can tell
what a killed one left and remove it. A directory may come from a stranger: nothing is written
through a link in it, and nothing is read that is not a plain file of a bounded size.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

FOLLOW_LINKS = "CTXEXT_FOLLOW_LINKS"
"""An environment variable, which child processes inherit; see `following_links`."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's errors for a full disk, and for a user's full share of it."""
RANDOM_SUFFIX = 8
"""Characters that follow the prefix of a temporary name."""
NO_LINKS = os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags of `os.open` that refuse a link and do not wait for the other end of a pipe."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""
MAX_JSON = 1 << 27
"""Bytes of a JSON file; those of the largest models have some ten million."""
MAX_JSONL = 1 << 32
"""Bytes of a JSONL file; a million records have about one billion."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_file(path: Path) -> None:
    # Not tempfile, whose files are private whatever the umask says.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _new_directory(path: Path) -> None:
    path.mkdir()


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
            descriptor = os.open(path, os.O_RDONLY | NO_LINKS)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def _lock_new(create: Callable[[Path], None], parent: Path, prefix: str) -> tuple[Path, int]:
    """A new temporary and the descriptor that holds its lock."""
    while True:
        temporary = parent / f"{prefix}{secrets.token_hex(RANDOM_SUFFIX // 2)}"
        # The name may be taken, or another process may remove the temporary before it is locked;
        # then another one is created.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            create(temporary)
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


def check_place(path: str | Path) -> None:
    """Raise ValueError if `path` is a link, or neither a plain file nor a directory.

    Whatever is written there would land in another place, which a stranger's directory could name.
    """
    path = Path(path)
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(mode):
        raise ValueError(
            f"{path} is a link to {path.readlink()}, and nothing is written through links: remove "
            "it, or put what it stands for in its place"
        )
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is not a plain file, and nothing is written to it: remove it")


def check_places(directory: str | Path, *names: str) -> None:
    """`check_place` for what `directory` holds under these names, patterns such as "base" or "*/*".

    The directory itself may be a link, as the user has named it.
    """
    for name in names:
        for path in sorted(Path(directory).glob(name)):
            check_place(path)


def open_in_place(path: str | Path, mode: str) -> IO[bytes]:
    """Open a file whose contents are added to or replaced, "ab" for example.

    Raises ValueError for a link, for a file that has a second name, and for anything but a file.
    """
    check_place(path)
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags | NO_LINKS, 0o666))
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise ValueError(
            f"{path} is a hard link: what is written to it would change a second file; put a copy "
            "in its place"
        )
    return file


def touch(path: str | Path) -> None:
    """Create an empty file unless there is one. Raises ValueError as `check_place` does."""
    open_in_place(path, "ab").close()


def _files(path: Path) -> list[Path]:
    """The files in a directory, or the file itself."""
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _disk_full(error: OSError, path: Path, how_far: str) -> OSError:
    """The same error with the file that did not fit, how far it came, and what is free."""
    free = shutil.disk_usage(path.parent).free
    text = f"{os.strerror(error.errno or errno.ENOSPC)} ({how_far}; now {free:,} bytes are free)"
    return OSError(error.errno, text, str(path))


@contextlib.contextmanager
def _temporary(path: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden sibling of `path`, locked while the block runs and removed if it fails.

    Siblings that killed processes left are removed first. Raises ValueError as `check_place` does.
    """
    make_parent(path)
    check_place(path)
    host = zlib.crc32(platform.node().encode())
    prefix = f".{path.name}.{host:08x}."
    _remove_abandoned(path.parent, prefix)
    temporary, descriptor = _lock_new(create, path.parent, prefix)
    try:
        yield temporary
    except OSError as error:
        written = sum(file.stat().st_size for file in _files(temporary))
        _remove(temporary)
        if error.errno in DISK_FULL:
            how_far = f"{written:,} bytes of it were written, and are removed again"
            raise _disk_full(error, path, how_far) from error
        raise
    except BaseException:
        _remove(temporary)
        raise
    finally:
        os.close(descriptor)
    _sync(path.parent)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling that replaces `path` in one step when the block succeeds.

    If the block fails it is removed. Raises ValueError if `path` is a directory or a link.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        raise ValueError(f"{path} is a directory; name a file")
    with _temporary(path, _new_file) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling that is renamed to `path` when the block succeeds.

    If the block fails it is removed. Raises ValueError if `path` exists and is not an empty
    directory, and if another process is writing it.
    """
    path = Path(path)
    check_free(path)
    with written_alone(path), _temporary(path, _new_directory) as temporary:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            _sync(file)
        os.replace(temporary, path)  # replaces an empty directory


@contextlib.contextmanager
def written_alone(path: Path) -> Iterator[None]:
    """Let no other process write `path` at the same time, which would do long work twice.

    Raises InUse, naming the process, if one does.
    """
    make_parent(path)
    check_place(path)
    advice = "wait for it, stop it, or choose another place with --out"
    lock = path.with_name(f".{path.name}.lock")
    with exclusive_lock(lock, f"{path} is being written", advice, remove=True):
        yield


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


def read_bytes(path: str | Path, largest: int) -> bytes:
    """The contents of a plain file.

    Raises ValueError naming the file if it is missing, not a plain file, or has more than `largest`
    bytes.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as f:
            status = os.fstat(f.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a plain file; put one in its place")
            if status.st_size > largest:
                raise ValueError(
                    f"{path} has {status.st_size:,} bytes, more than the {largest:,} that such a "
                    "file can have; copy it again"
                )
            return f.read()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises ValueError naming the file if it is missing or not JSON."""
    data = read_bytes(path, MAX_JSON)
    try:
        return json.loads(data)
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


class InUse(ValueError):
    """Another process holds a lock."""


@contextlib.contextmanager
def exclusive_lock(
    path: str | Path, message: str, advice: str, *, remove: bool = False
) -> Iterator[None]:
    """Hold a lock on the file `path`, which says who holds it: process, host and time.

    The system releases it when this process ends, however it ends. It holds between hosts too where
    the file system passes locks on, as NFS does; one without locks is reported on stderr. remove:
    the file goes with the lock.

    Raises InUse "`message` by process 12 on HOST since TIME; `advice`" if another process holds it.
    """
    with _open_locked(Path(path), message, advice) as file:
        holder = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        file.truncate(0)
        file.write(json.dumps(holder).encode())
        file.flush()
        try:
            yield
        finally:
            if remove:
                Path(path).unlink(missing_ok=True)


def _open_locked(path: Path, message: str, advice: str) -> IO[bytes]:
    while True:
        file = open_in_place(path, "ab+")
        try:
            if not _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                print(
                    f"{path.parent} is in a file system without locks: let no second process "
                    "write there",
                    file=sys.stderr,
                )
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise InUse(f"{message} by {holder}; {advice}") from None
        # The one who held it may have removed the file meanwhile; then the lock is worth nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _flock(file: IO[bytes], operation: int) -> bool:
    """False if the file system has no locks. Raises BlockingIOError instead of waiting if asked."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _holder(file: IO[bytes]) -> str:
    """Who holds a lock, as far as its file says so."""
    try:
        file.seek(0)
        holder = json.loads(file.read(1000))
        pid = int(holder["pid"])
        since = datetime.datetime.fromisoformat(holder["since"])
        if re.fullmatch(r"[\w.-]+", holder["host"], re.ASCII):
            return f"process {pid} on {holder['host']} since {since:%Y-%m-%d %H:%M:%S %z}"
    except (ValueError, KeyError, TypeError):  # it has just been locked, or someone else wrote it
        pass
    return "another process"


@contextlib.contextmanager
def waiting_lock(path: str | Path) -> Iterator[IO[bytes]]:
    """Yield the file `path`, opened to append, when no other process has it locked like this."""
    with open_in_place(path, "ab+") as file:
        _flock(file, fcntl.LOCK_EX)
        yield file


def append_jsonl(path: str | Path, record: dict[str, Any]) -> None:
    """Append one line of JSON to a file, which several processes may do at once.

    The file is locked meanwhile, and the line is written in one call, so that a crash tears at most
    the last line; a torn last line is cut off first.
    """
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    try:
        with waiting_lock(path) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _disk_full(error, Path(path), f"a line has {len(line):,} bytes") from error
        raise


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, [] if it does not exist; a torn last line is dropped.

    Raises ValueError naming any other line that is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    # Whatever follows the last line end is empty or torn.
    for number, line in enumerate(read_bytes(path, MAX_JSONL).split(b"\n")[:-1], 1):
        try:
            records.append(json.loads(line))
        except RecursionError:
            raise ValueError(f"{path}, line {number}, is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
    return records
