"""The files of the sources that are prepared, looked at before any work is done."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ctxext.data.documents import (
    Field,
    Found,
    accompanies_data,
    check_beginnings,
    find_files,
    patterns,
    summary,
)


def option(field: str, *, is_chat: bool = False) -> Field:
    """The key or column of the text, which `--field` chooses; is_chat: of records of chats."""
    return Field(field, "--field", "--chat-template", is_chat)


def find_sources(
    roots: Sequence[Path], field: Field, *, max_rejects: float, quiet: bool = False
) -> list[dict[str, Path]]:
    """The files of every source by the names they are cited by, in order.

    Says which files are read and which are not, unless `quiet`. Raises ValueError for a source that
    does not exist or holds no text, and for files that begin with more than `max_rejects` allows.
    """
    sources: list[dict[str, Path]] = []
    for root in roots:
        if not root.exists():
            raise ValueError(
                f"there is no {root}; give a file, a directory, or a dataset of the hub "
                "(owner/name)"
            )
        found = find_files(root)
        try:
            check_beginnings(found, field, strict=max_rejects == 0)
        except ValueError as error:
            raise ValueError(f"{error}{_those_that_can_be_read(found, field)}") from None
        if found.note and not quiet:
            _say(found.note)
        sources.append(found.files)
    if not quiet:
        for note in _what_is_read(roots, sources):
            _say(note)
    return sources


def _say(note: str) -> None:
    print(f"prepare: {note}", file=sys.stderr, flush=True)


def _what_is_read(roots: Sequence[Path], sources: Sequence[dict[str, Path]]) -> Iterator[str]:
    """Sentences about the files that are read, and those that a pattern took by accident."""
    names = [name for files in sources for name in files]
    first = f", the first {', '.join(names[:3])}" if len(names) > 3 else ""
    yield f"reads {summary(names)}{first}"
    about = [str(root) for root in roots if root.is_file() and accompanies_data(root)]
    if about:
        yield (
            f"{summary(about)} read because named, as by a pattern such as *.md; the directory "
            "itself, as SRC, is read without such files"
        )


def _those_that_can_be_read(found: Found, field: Field) -> str:
    """Advice on a directory of which only some files can be read; empty if it is not one."""
    readable = []
    for name, path in found.files.items():
        try:
            check_beginnings(Found(path, {name: path}), field)
            readable.append(name)
        except ValueError:
            pass
    others = [*(name for name in found.files if name not in readable), *found.ignored]
    if not readable:
        return ""
    return (
        f"; {len(readable):,} of the {len(found.files):,} files of {found.root} can be read so: "
        f"prepare {patterns(found.root, readable, others)}, and the others by themselves"
    )
