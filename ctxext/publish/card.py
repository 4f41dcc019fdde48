"""What the card of a model must say before the model is published, and what no text may hold."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from ctxext.files import read_bytes
from ctxext.interop.front_matter import read_block
from ctxext.interop.model_card import HUB_NAMES, NO_LICENSE

EXAMPLES = {"base_model": "meta-llama/Llama-2-7b-hf", "license": "llama2"}
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
"""How tokens of the hub look."""
LARGEST_TEXT = 10**8
"""Bytes of a text for people, or of a proof."""


@dataclasses.dataclass(frozen=True)
class Card:
    """The front matter of a model card: its lines, and what the hub indexes the model by."""

    front_matter: str
    base_models: tuple[str, ...]
    license: str


def read_card(file: Path) -> Card:
    """The front matter of a card.

    Raises ValueError, with the lines to add, if it names no base or no license as the hub has them.
    """
    text, entries = read_block(file)
    base_models = _names(entries, "base_model")
    licenses = _names(entries, "license")
    missing = [
        f"{key}: {EXAMPLES[key]}"
        for key, names in (("base_model", base_models), ("license", licenses))
        if not names
    ]
    if missing:
        raise ValueError(
            f"{file} does not say what the model is derived from and under which license; between "
            f"the two lines --- at its beginning add, for example, {' and '.join(missing)} (the "
            "proof of the export stays as it is)"
        )
    for key, names in (("base_model", base_models), ("license", licenses)):
        for name in names:
            if not HUB_NAMES[key].fullmatch(name):
                raise ValueError(
                    f"{file}: {key} {name!r} is no name that the hub knows, such as {EXAMPLES[key]}"
                )
    return Card(text, base_models, licenses[0])


def _names(entries: dict[str, Any], key: str) -> tuple[str, ...]:
    value = entries.get(key)
    values = value if isinstance(value, list) else [value]
    return tuple(str(item) for item in values if item not in (None, ""))


def says_no_license(file: Path) -> bool:
    """Whether the list of a card still has the line of a base that states no license."""
    return f"- license: {NO_LICENSE}" in read_bytes(file, LARGEST_TEXT).decode(errors="replace")


def refuse_tokens(file: Path) -> None:
    """Raise ValueError, without showing it, if a text holds what looks like a token of the hub."""
    text = read_bytes(file, LARGEST_TEXT).decode(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if TOKEN.search(line):
            raise ValueError(
                f"{file}, line {number}, holds what looks like a token of the hub; remove it, and "
                "revoke it if anybody else has seen it"
            )


def names_home(file: Path) -> bool:
    """Whether a text names a place in the user's home directory, which its readers will see."""
    return str(Path.home()).encode() + b"/" in read_bytes(file, LARGEST_TEXT)
