"""What a haystack is called on the command line."""

from pathlib import Path

from ctxext.data.hf import SUFFIXES, HFDocuments
from ctxext.data.sources import Files, Stdlib, TextSource


def haystack(name: str, *, field: str = "text") -> TextSource:
    """The source that `name` means: "stdlib" (its held-out part), text or JSONL files, or Parquet or Arrow files.

    field: the key or column of the text. Raises ValueError if there is no such path, or nothing or both kinds in it.
    """
    if name == "stdlib":
        return Stdlib("heldout")
    root = Path(name).expanduser()
    if not root.exists():
        raise ValueError(f'there is no haystack {name}: give "stdlib", or a file or directory that exists')
    found = {path.suffix for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()}
    text, table = found & {".txt", ".jsonl"}, found & set(SUFFIXES)
    if text and table:
        raise ValueError(f"{name} holds both {', '.join(sorted(text | table))} files: name those that are meant")
    if not text and not table:
        raise ValueError(f"{name} holds no .txt, .jsonl, .parquet or .arrow file")
    return HFDocuments(name, field) if table else Files(name, field)
