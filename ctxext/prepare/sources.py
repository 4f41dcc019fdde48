"""The files of the sources that are prepared, looked at before any work is done."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ctxext.data.documents import Field, check_beginnings, find_files


def option(field: str) -> Field:
    """The key or column of the text, which `--field` chooses."""
    return Field(field, "--field")


def find_sources(
    roots: Sequence[Path], field: str, *, max_rejects: float, quiet: bool = False
) -> list[dict[str, Path]]:
    """The files of every source by the names they are cited by, in order.

    Says which files are not read, unless `quiet`. Raises ValueError for a source that does not
    exist or holds no text, and for files that begin with more than `max_rejects` allows.
    """
    sources = []
    for root in roots:
        if not root.exists():
            raise ValueError(
                f"there is no {root}; give a file, a directory, or a dataset of the hub "
                "(owner/name)"
            )
        found = find_files(root)
        check_beginnings(found, option(field), strict=max_rejects == 0)
        if found.note and not quiet:
            print(f"prepare: {found.note}", file=sys.stderr, flush=True)
        sources.append(found.files)
    return sources
