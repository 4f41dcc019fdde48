"""The chat template that a run was trained with, by the hash that its provenance has."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ctxext import loading
from ctxext.files import read_json
from ctxext.rundir import RunDir
from ctxext.terminal import printable_line
from ctxext.tokenization.chat import OWN, TEMPLATES, Chat
from ctxext.tokenization.tokenizer import Tokenizer

HASH = "chat_template_sha256"
"""Where a description of chats as training data has its template."""


def trained_chat(source: str, tokenizer: Tokenizer) -> tuple[Chat, str] | None:
    """The chat of a run that was trained on chats, and the name of its template.

    None for a checkpoint, and for a run that was trained on texts. Raises ValueError if it was
    trained with several templates, or with one that is no longer here.
    """
    path = Path(source)
    run = RunDir(path)
    if not loading.is_run(path) or not run.provenance_file.is_file():
        return None
    hashes = set(_values(read_json(run.provenance_file), HASH))
    if not hashes:
        return None
    files = sorted({str(name) for name in _values(run.settings().get("data"), "chat_template")})
    known = {OWN: tokenizer.chat_template, **TEMPLATES}
    known |= {name: _read(name) for name in files if name not in known}
    if len(hashes) > 1:
        raise ValueError(
            f"{path} was trained with {len(hashes)} chat templates: choose one with --chat-template"
        )
    for name, template in known.items():
        if template is not None and hashlib.sha256(template.encode()).hexdigest() in hashes:
            return Chat(tokenizer, template), name
    raise ValueError(
        printable_line(
            f"{path} was trained with a chat template that is not here any more"
            f"{''.join(f' ({name})' for name in files)}: give it with --chat-template FILE"
        )
    )


def _read(name: str) -> str | None:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None


def _values(value: Any, key: str) -> Iterator[Any]:
    """Every text under a key in JSON, at any depth."""
    if isinstance(value, dict):
        if isinstance(value.get(key), str):
            yield value[key]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _values(item, key)
