"""The tokens added to a vocabulary, by tokenizer.json and by the files next to it."""

from typing import Any

from ctxext.tokenization.bounds import LONGEST_TOKEN, MAX_ADDED
from ctxext.tokenization.special_tokens import read_settings, special_contents
from ctxext.tokenization.tokenizer_files import ADDED, CONFIG, JSON, json_object

SPECIAL_TOKEN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
"""The fields of a special token in tokenizer.json, besides its id and content."""


def added_tokens(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """All added tokens by id, in the form of tokenizer.json.

    They come from tokenizer.json, from added_tokens_decoder in tokenizer_config.json, and without
    that key from added_tokens.json, which maps contents to ids. Raises ValueError for tokens that
    contradict each other or are malformed.
    """
    listed = json_object(files, JSON).get("added_tokens", [])
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise ValueError(f"the added_tokens of {JSON} must be a list of objects")
    by_id: dict[int, tuple[dict[str, Any], str]] = {}
    ids: dict[str, int] = {}
    sources = ((JSON, listed), (CONFIG, decoder_tokens(files)), (ADDED, _from_map(files)))
    for source, tokens in sources:
        for token in tokens:
            token_id, text = _checked(token)
            first, first_source = by_id.setdefault(token_id, (token, source))
            if first["content"] != text:
                raise ValueError(
                    f"id {token_id} is both {first['content']!r} and {text!r} in {first_source} "
                    f"and {source}; remove the wrong one"
                )
            if ids.setdefault(text, token_id) != token_id:
                raise ValueError(
                    f"{text!r} has the ids {ids[text]} and {token_id} in {JSON}, {CONFIG} and "
                    f"{ADDED}; remove the wrong one"
                )
    if len(by_id) > MAX_ADDED:
        raise ValueError(
            f"{JSON}, {CONFIG} and {ADDED} add {len(by_id):,} tokens to the vocabulary, more than "
            "any model needs; use the tokenizer the model was trained with"
        )
    return [by_id[token_id][0] for token_id in sorted(by_id)]


def _checked(token: dict[str, Any]) -> tuple[int, str]:
    """Id and content of a token."""
    token_id = token.get("id")
    text = token.get("content")
    if type(token_id) is not int or token_id < 0 or not isinstance(text, str) or not text:
        raise ValueError(f"an added token needs an id and its content, got {str(token)[:80]}")
    if len(text) > LONGEST_TOKEN:
        raise ValueError(
            f"the added token {text[:20]!r}... has {len(text):,} characters, more than any model "
            "needs; use the tokenizer the model was trained with"
        )
    return token_id, text


def decoder_tokens(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """The tokens of added_tokens_decoder, which maps ids, as text, to tokens.

    Raises ValueError for a malformed map.
    """
    decoder = json_object(files, CONFIG).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ValueError(f"added_tokens_decoder of {CONFIG} must map ids to tokens")
    tokens = []
    for key, token in decoder.items():
        if not key.isdecimal() or not isinstance(token, dict):
            raise ValueError(
                f"added_tokens_decoder of {CONFIG} must map ids to tokens, got {key!r}: "
                f"{str(token)[:60]}"
            )
        fields = {name: bool(token.get(name, False)) for name in SPECIAL_TOKEN}
        fields["normalized"] = bool(token.get("normalized", not fields["special"]))
        tokens.append({"id": int(key), "content": token.get("content"), **fields})
    return tokens


def _from_map(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """The tokens of added_tokens.json; special are those that other files name as special."""
    mapped = json_object(files, ADDED)
    settings = read_settings(files)
    special = special_contents(settings)
    tokens = []
    for text, token_id in mapped.items():
        is_special = text in special
        fields = {**SPECIAL_TOKEN, "special": is_special, "normalized": not is_special}
        tokens.append({"id": token_id, "content": text, **fields})
    return tokens
