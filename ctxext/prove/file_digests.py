"""sha256 digests of the files of an export, by which a later proof notices that one has changed."""

import fnmatch
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ctxext.files import within

PROSE = ("*.md", "LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt")
"""Files for people: no reader of a model opens them, so that they may be edited."""
PROOF = "proof.json"
SLOW_TO_READ = 10**10
"""Bytes whose digests take more than some seconds, and are announced."""


def file_digests(path: str | Path) -> dict[str, str]:
    """The sha256 of a file, or of each file in a directory, by its name in the directory.

    Left out are `PROSE`, hidden files and proof.json, which holds the digests. Raises ValueError
    for a link to another place, see `files.within`.
    """
    path = Path(path)
    if path.is_file():
        names = [path.name]
        directory = path.parent
    else:
        names = sorted(_names(path))
        directory = path
    files = {name: within(directory, name) for name in names}
    size = sum(file.stat().st_size for file in files.values())
    if size > SLOW_TO_READ:
        print(f"sha256 of {len(files)} files, {size / 1e9:,.0f} GB", file=sys.stderr, flush=True)
    return {name: _sha256(file) for name, file in files.items()}


def _names(directory: Path) -> Iterator[str]:
    for parent, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in names:
            path = Path(parent) / name
            is_prose = any(fnmatch.fnmatch(name, pattern) for pattern in PROSE)
            if not is_prose and not name.startswith(".") and name != PROOF and path.is_file():
                yield str(path.relative_to(directory))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Name -> "changed", "missing" or "new", for each file whose digest is not the earlier one."""
    changes = {}
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            changes[name] = "missing"
        elif name not in before:
            changes[name] = "new"
        elif before[name] != now[name]:
            changes[name] = "changed"
    return changes


def in_words(changes: dict[str, str]) -> str:
    """The changes as a list for people: "config.json (changed), tokenizer.json (missing)"."""
    return ", ".join(f"{name} ({change})" for name, change in changes.items())
