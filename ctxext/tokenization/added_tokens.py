"""The JSON files of a tokenizer: tokens that were added behind its own, for padding or chat, and how texts begin."""

import json
from typing import Any

JSON, CONFIG, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}


def json_object(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """The JSON object in a file, {} if there is none. Raises ValueError naming the file for anything else."""
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold an object, got {str(value)[:40]}")
    return value


def added_tokens(files: dict[str, bytes], vocab_size: int) -> list[dict[str, Any]]:
    """Those with an id of at least `vocab_size`, as tokenizer.json has them; added_tokens.json says id by content.

    Raises ValueError for two that contradict each other or are malformed.
    """
    stored = json_object(files, JSON).get("added_tokens", [])
    if not isinstance(stored, list) or not all(isinstance(token, dict) for token in stored):
        raise ValueError(f"the added_tokens of {JSON} must be a list of objects")
    given = [
        *stored,
        *({**PLAIN, "id": i, "content": text} for text, i in json_object(files, ADDED).items()),
    ]
    found: dict[int, dict[str, Any]] = {}
    for token in given:
        i, text = token.get("id"), token.get("content")
        if type(i) is not int or i < 0 or not isinstance(text, str) or not text:
            raise ValueError(f"an added token needs an id and its content, got {str(token)[:80]}")
        if i >= vocab_size and found.setdefault(i, token)["content"] != text:
            raise ValueError(
                f"id {i} is both {found[i]['content']!r} and {text!r} in {JSON} and {ADDED}; remove the "
                "wrong one"
            )
    return [found[i] for i in sorted(found)]


def content(token: Any) -> str | None:
    """The text of a special token in tokenizer_config.json, which writes it plainly or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def template(bos: str, i: int) -> dict[str, Any]:
    """The post_processor of tokenizer.json that begins every sequence with the token `bos`, whose id is i."""

    def part(type_id: int, name: str) -> list[dict[str, Any]]:
        start = {"SpecialToken": {"id": bos, "type_id": type_id}}
        return [start, {"Sequence": {"id": name, "type_id": type_id}}]

    token = {"id": bos, "ids": [i], "tokens": [bos]}
    return {
        "type": "TemplateProcessing",
        "single": part(0, "A"),
        "pair": part(0, "A") + part(1, "B"),
        "special_tokens": {bos: token},
    }


def json_bytes(value: Any) -> bytes:
    """Strict JSON to be read by people too."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
