"""What a haystack is called on the command line."""

from pathlib import Path

from ctxext.data.columnar import SUFFIXES, HFDocuments
from ctxext.data.prepared import is_prepared, read_index
from ctxext.data.sources import Files, Prepared, Stdlib, TextSource


def haystack(name: str, *, field: str = "text") -> TextSource:
    """The source that `name` means: "stdlib", what `ctxext prepare` wrote, text or JSONL, or Parquet or Arrow files.

    Of the first two it is the held-out part, where there is one. field: the key or column of the text. Raises
    ValueError if there is no such path, or nothing or both kinds in it.
    """
    if name == "stdlib":
        return Stdlib("heldout")
    root = Path(name).expanduser()
    if not root.exists():
        raise ValueError(
            f'there is no haystack {name}: give "stdlib", or a file or directory that exists'
        )
    if is_prepared(root):
        return Prepared(
            name, "heldout" if read_index(root)["splits"]["heldout"]["documents"] else "train"
        )
    return HFDocuments(name, field) if is_table(root) else Files(name, field)


def is_table(root: Path) -> bool:
    """Whether a file or directory holds Parquet or Arrow. Raises ValueError if it holds text as well, or neither."""
    found = {
        path.suffix for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()
    }
    text, table = found & {".txt", ".jsonl"}, found & set(SUFFIXES)
    if text and table:
        raise ValueError(
            f"{root} holds both {', '.join(sorted(text | table))} files: name those that are meant"
        )
    if not text and not table:
        raise ValueError(f"{root} holds no .txt, .jsonl, .parquet or .arrow file")
    return bool(table)
