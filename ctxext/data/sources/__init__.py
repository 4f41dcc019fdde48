"""Where data comes from, one file per source; `--haystack` finds those of documents by itself."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from ctxext.data.documents import find_files
from ctxext.data.sources.base import Source as Source
from ctxext.data.sources.base import TextOnDisk as TextOnDisk
from ctxext.data.sources.base import TextSource as TextSource
from ctxext.data.sources.base import text_on_disk as text_on_disk
from ctxext.data.sources.mix import Mix as Mix
from ctxext.data.sources.own_held_out import OwnHeldOut as OwnHeldOut
from ctxext.data.sources.prepared import Prepared as Prepared
from ctxext.data.sources.short import Short as Short
from ctxext.data.sources.stdlib import Stdlib as Stdlib
from ctxext.data.sources.synthetic import Synthetic as Synthetic
from ctxext.data.sources.text_files import Files as Files
from ctxext.data.sources.text_files import Split as Split
from ctxext.data.sources.upsampled import Upsampled as Upsampled
from ctxext.discovery import classes_in_package


@functools.cache
def text_sources() -> tuple[type[TextSource], ...]:
    """Every concrete source of documents in this package's files, by file."""
    return tuple(classes_in_package(__name__, TextSource))


def haystack(
    name: str,
    *,
    field: str | None = None,
    parse_special: bool = False,
    held_out: float | None = None,
    what: str = "haystack",
) -> TextSource:
    """The source that `--haystack name` means: a name such as "stdlib", or a path.

    A directory that `ctxext prepare` wrote is its held-out part, if it has one. field: the key or
    column of the text, "text" by default; parse_special: see `Files`; held_out: only the share of
    documents that training holds out of files of text; what: how messages call it. Raises
    ValueError if there is no such path, it is not of one kind, or it has no such options.
    """
    named = {source.haystack_name: source for source in text_sources() if source.haystack_name}
    if name in named:
        source = named[name].as_haystack(name)
    else:
        root = Path(name).expanduser()
        if not name or not root.exists():
            names = " or ".join(f'"{known}"' for known in named)
            raise ValueError(
                f"there is no {what} {name!r}: give {names}, or a file or directory that exists"
            )
        source = recognize(root).as_haystack(name)
    options: dict[str, Any] = {}
    if field is not None:
        options["field"] = field
    if parse_special:
        options["parse_special"] = True
    if options.keys() - {known.name for known in dataclasses.fields(source)}:
        raise ValueError(
            f"the {what} {name} has no {' or '.join(options)} to choose: files of text do"
        )
    source = dataclasses.replace(source, **options)
    if held_out is None:
        return source
    if not isinstance(source, Files):
        raise ValueError(
            f"the {what} {name} has no share to hold out: files of text do; the standard library "
            "and prepared tokens are read without what training sees"
        )
    return Split(source, "heldout", held_out)


def recognize(root: Path) -> type[TextSource]:
    """The kind of source that a file or directory is.

    Raises ValueError if it holds files of no kind, or of several.
    """
    kinds = [source for source in text_sources() if source.recognizes(root)]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        suffixes = ", ".join(suffix for kind in kinds for suffix in kind.suffixes)
        raise ValueError(
            f"{root} holds files of several kinds ({suffixes}): name those that are meant"
        )
    find_files(root)  # says why nothing recognizes it
    known = ", ".join(suffix for source in text_sources() for suffix in source.suffixes)
    raise ValueError(f"{root} holds no file that can be read: give {known}")
