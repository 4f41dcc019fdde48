"""The files of a tokenizer by name, and the JSON in them."""

import json
from typing import Any

MODEL = "tokenizer.model"
JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
TEMPLATE = "chat_template.jinja"
FILES = (MODEL, JSON, CONFIG, SPECIAL_MAP, ADDED, TEMPLATE)
"""Every file that is read, and copied when a model is written."""


def json_object(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in a file, {} without that file. Raises ValueError naming the file."""
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold an object, got {str(value)[:40]}")
    return value


def json_bytes(value: Any) -> bytes:
    """Strict JSON, indented for people to read."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
