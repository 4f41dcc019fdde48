"""Tokenizer files in JSON: tokens added after the vocabulary's own, and how a sequence begins."""

import json
from typing import Any

JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ADDED = "added_tokens.json"

SPECIAL_TOKEN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
"""The fields of a special token in tokenizer.json, besides its id and content."""


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


def added_tokens(files: dict[str, bytes], vocab_size: int) -> list[dict[str, Any]]:
    """The tokens with an id of at least `vocab_size`, by id, in the form of tokenizer.json.

    They come from tokenizer.json and from added_tokens.json, which maps contents to ids. Raises
    ValueError for tokens that contradict each other or are malformed.
    """
    listed = json_object(files, JSON).get("added_tokens", [])
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise ValueError(f"the added_tokens of {JSON} must be a list of objects")
    mapped = [
        {**SPECIAL_TOKEN, "id": token_id, "content": text}
        for text, token_id in json_object(files, ADDED).items()
    ]
    by_id: dict[int, dict[str, Any]] = {}
    for token in [*listed, *mapped]:
        token_id = token.get("id")
        text = token.get("content")
        if type(token_id) is not int or token_id < 0 or not isinstance(text, str) or not text:
            raise ValueError(f"an added token needs an id and its content, got {str(token)[:80]}")
        if token_id < vocab_size:
            continue
        first = by_id.setdefault(token_id, token)
        if first["content"] != text:
            raise ValueError(
                f"id {token_id} is both {first['content']!r} and {text!r} in {JSON} and {ADDED}; "
                "remove the wrong one"
            )
    return [by_id[token_id] for token_id in sorted(by_id)]


def token_text(token: Any) -> str | None:
    """The text of a special token in tokenizer_config.json: a string, or an object with one."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def begin_with(bos: str, bos_id: int) -> dict[str, Any]:
    """The post_processor of tokenizer.json that begins every sequence with the token `bos`."""

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        start = {"SpecialToken": {"id": bos, "type_id": type_id}}
        return [start, {"Sequence": {"id": name, "type_id": type_id}}]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
