"""What the README.md of a checkpoint says of its model: the block of YAML that the hub reads."""

import re
from pathlib import Path
from typing import Any

LARGEST = 65536
"""Bytes of a README.md that are looked at."""
LONGEST = 200
"""Characters that are kept of an entry."""
KEYS = ("license", "license_name", "license_link", "base_model", "language", "datasets")
"""The entries that a derived model keeps. Its base is this checkpoint, not that one's own base."""
BLOCK = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)


def read_about(directory: str | Path) -> dict[str, str]:
    """The entries of `KEYS` by name; empty without a README.md or a block that is well-formed.

    Texts of strangers: nothing but short texts is taken, and what is no YAML is left alone, as it
    only describes the model.
    """
    path = Path(directory) / "README.md"
    if not path.is_file():
        return {}
    _, entries = read_block(path)
    texts = {name: _text(entries.get(name)) for name in KEYS}
    return {name.replace("_", " "): text for name, text in texts.items() if text}


def read_block(file: Path) -> tuple[str, dict[str, Any]]:
    """(the lines between the two --- at the beginning of a file, the entries in them).

    Nothing of a file without these lines; no entries of lines that are no YAML of a mapping.
    """
    with file.open("rb") as opened:
        text = opened.read(LARGEST).decode(errors="replace")
    block = BLOCK.match(text)
    if not block:
        return "", {}
    import yaml

    try:
        entries = yaml.safe_load(block[1])
    except yaml.YAMLError:
        entries = None
    return block[1], entries if isinstance(entries, dict) else {}


def _text(value: Any) -> str:
    """A short text, or several in one line; "" for anything else."""
    values = value if isinstance(value, list) else [value]
    if len(values) > 20 or not all(isinstance(item, str) for item in values):
        return ""
    return ", ".join(values)[:LONGEST]
