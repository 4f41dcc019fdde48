"""Digests of a directory: written when it is complete, compared before it is believed."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ctxext.files import read_json, write_json
from ctxext.parallel import distributed

NAME = "sha256.json"


def seal(directory: Path, **facts: Any) -> None:
    """Put every file of `directory` on disk and its SHA-256 into sha256.json, beside `facts`. Raises OSError."""
    names = sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    with ThreadPoolExecutor() as pool:
        files = dict(
            zip(
                names,
                pool.map(lambda name: _digest(directory / name, sync=True), names),
                strict=True,
            )
        )
    write_json(directory / NAME, {"facts": facts, "files": files, "sha256": _of_json(facts, files)})


def sealed(directory: Path) -> bool:
    """True if the directory has its digests, right or wrong."""
    return (directory / NAME).exists()


def facts(directory: Path) -> dict[str, Any]:
    """What was sealed with the directory; nothing if that is not what was written."""
    return (_content(directory) or {"facts": {}})["facts"]


def damage(directory: Path, *, part: str = "") -> str | None:
    """What is wrong with a sealed directory, or with its files whose names start with `part`; None if nothing is.

    Every process reads its share of the files, and all give the same answer.
    """
    content = distributed.broadcast_from_primary(lambda: _content(directory))
    if content is None:
        return f"{NAME} is not what was written"
    files = content["files"]
    names = [name for name in files if name.startswith(part) or "/" not in name]
    share = range(1 + distributed.process_index(), len(names) + 1, distributed.process_count())
    mine = [(number, names[number - 1]) for number in share]
    found = int(distributed.all_reduce_max(_wrong(directory, files, mine)))
    return f"{names[found - 1]} is not what was written" if found else None


def _content(directory: Path) -> dict[str, Any] | None:
    """Facts and the digest of each file, None if they themselves are damaged."""
    try:
        content = read_json(directory / NAME)
        return (
            content if content["sha256"] == _of_json(content["facts"], content["files"]) else None
        )
    except (ValueError, KeyError, TypeError):
        return None


def _wrong(directory: Path, files: dict[str, str], mine: list[tuple[int, str]]) -> int:
    """The number of a file that differs, 0 if none does."""

    def right(name: str) -> bool:
        try:
            return _digest(directory / name) == files[name]
        except OSError:  # missing, or a disk that cannot read it back
            return False

    with ThreadPoolExecutor() as pool:
        return max(pool.map(lambda item: 0 if right(item[1]) else item[0], mine), default=0)


def _digest(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_json(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
