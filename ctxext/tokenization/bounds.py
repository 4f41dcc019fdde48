"""How much a tokenizer of a stranger may make of a text, found before it is given one.

A tokenizer.json replaces parts of a text by others, over and over if it says so. The library that
runs it asks for as much memory as that takes, and if there is not as much, the whole process ends.
So the rules are looked at first. The same for the replacements in a SentencePiece model.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from ctxext.tokenization.expressions import EXPRESSIONS
from ctxext.tokenization.tokenizer_files import JSON

USUAL_FACTOR = 4.0
"""What the rules of published tokenizers stay below."""
MAX_GROWN = 1 << 24
"""Characters that a text may become beyond `USUAL_FACTOR` times its length."""
LONGEST_TOKEN = 1 << 12
"""Characters of a token; the longest of published ones have a few hundred."""
LONGEST_CHARACTER = 32
"""Characters that Unicode's normal forms make of one: at most 18."""
MAX_PARTS = 256
MAX_ADDED = 1 << 18
"""Added tokens; models of speech have some ten thousand."""
MAX_AROUND = 1 << 10
"""Tokens that a post_processor may put around a text."""
MAX_PADDING = 1 << 20
"""Tokens; our code pads nothing, but programs that read the same file do."""
INNER = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
"""Where a Sequence of each kind has its parts."""


class Growth(NamedTuple):
    """A text of n characters becomes at most `factor` n + `extra` characters."""

    factor: float = 1.0
    extra: float = 0.0

    def then(self, factor: float, extra: float = 0.0) -> "Growth":
        return Growth(self.factor * factor, self.extra * factor + extra)

    def check(self, length: int) -> None:
        """Raise ValueError if a text of that many characters could become far too long."""
        grown = self.factor * length + self.extra
        if grown > USUAL_FACTOR * length + MAX_GROWN:
            raise ValueError(
                f"{JSON} may make {grown:,.0f} characters of the {length:,} of a text, more than "
                "memory is risked for; use the tokenizer the model was trained with"
            )


def growth(data: dict[str, Any]) -> Growth:
    """The growth of a text until it is divided into tokens, by the contents of a tokenizer.json."""
    result = Growth()
    for part in parts(data, "normalizer"):
        result = _normalized(part, result)
    byte_levels = 0
    for part in parts(data, "pre_tokenizer"):
        kind = part.get("type")
        if kind == "Metaspace" and part.get("prepend_scheme") != "never":
            result = result.then(2, 1)
        elif kind == "ByteLevel":
            # The first one makes bytes of characters; a second one makes bytes of those.
            result = result.then(2 if byte_levels else 1, 1)
            byte_levels += 1
    return result


def decoded_growth(data: dict[str, Any]) -> Growth:
    """The growth of the tokens' own texts when they are decoded."""
    result = Growth()
    for part in parts(data, "decoder"):
        if part.get("type") == "Replace":
            result = _replaced(part, result)
        elif part.get("type") in ("WordPiece", "BPEDecoder"):
            result = result.then(2)
    return result


def check_bounds(data: dict[str, Any]) -> None:
    """Raise ValueError for a tokenizer.json with more of something than any model needs."""
    for kind in INNER:
        if sum(1 for _ in parts(data, kind)) > MAX_PARTS:
            raise _refusal(f"a {kind} of more than {MAX_PARTS} parts")
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = [
        entry[0] if isinstance(entry, list) and entry else entry for entry in vocabulary or ()
    ]
    if any(len(token) > LONGEST_TOKEN for token in tokens if isinstance(token, str)):
        raise _refusal(f"a token of more than {LONGEST_TOKEN:,} characters")
    for part in parts(data, "post_processor"):
        if _num_around(part) > MAX_AROUND:
            raise _refusal(f"a post_processor that adds more than {MAX_AROUND} tokens to a text")
    padding = data.get("padding")
    if isinstance(padding, dict):
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else 0
        for number in (fixed, padding.get("pad_to_multiple_of")):
            if isinstance(number, int) and number > MAX_PADDING:
                raise _refusal(f"padding to {number} tokens")


def unknown_expressions(data: dict[str, Any]) -> list[str]:
    """The regular expressions of a tokenizer.json, but for those of published tokenizers."""
    return [
        expression
        for kind in ("normalizer", "pre_tokenizer", "decoder")
        for part in parts(data, kind)
        if (expression := _pattern(part, "Regex")) and expression not in EXPRESSIONS
    ]


def parts(data: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """The parts of a normalizer and so on, in order, out of whatever sequences they are in."""
    waiting = [data.get(kind)]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        inner = part.get(INNER[kind])
        if part.get("type") == "Sequence" and isinstance(inner, list):
            waiting += reversed(inner)
        else:
            yield part


def _normalized(part: dict[str, Any], before: Growth) -> Growth:
    match part.get("type"):
        case "Replace":
            return _replaced(part, before)
        case "Prepend":
            return before.then(1, len(_text(part.get("prepend"))))
        case "Precompiled":
            return before.then(replacement_factor(_decoded(part.get("precompiled_charsmap"))))
        case "BertNormalizer":
            return before.then(3)
        case "ByteLevel":
            return before.then(2)
        case _:
            return before


def _replaced(part: dict[str, Any], before: Growth) -> Growth:
    content = len(_text(part.get("content")))
    pattern = _pattern(part, "String")
    if pattern:
        return before.then(max(1.0, content / len(pattern)))
    # An expression, or nothing at all, also matches between two characters and at both ends.
    return before.then(1 + content, content)


def _pattern(part: dict[str, Any], kind: str) -> str:
    pattern = part.get("pattern")
    return _text(pattern.get(kind)) if isinstance(pattern, dict) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _num_around(part: dict[str, Any]) -> int:
    """The most tokens that a TemplateProcessing puts around a text or a pair of texts."""
    declared = part.get("special_tokens")
    counts: list[int] = []
    for name in ("single", "pair"):
        count = 0
        items = part.get(name)
        for item in items if isinstance(items, list) else []:
            special = item.get("SpecialToken") if isinstance(item, dict) else None
            token = special.get("id") if isinstance(special, dict) else None
            if isinstance(token, str) and isinstance(declared, dict):
                entry = declared.get(token)
                ids = entry.get("ids") if isinstance(entry, dict) else None
                count += max(1, len(ids) if isinstance(ids, list) else 0)
        counts.append(count)
    return max(counts)


def _decoded(value: Any) -> bytes:
    try:
        return base64.b64decode(_text(value))
    except (binascii.Error, ValueError):  # which the library refuses
        return b""


def replacement_factor(charsmap: bytes) -> float:
    """By how much the replacements of a SentencePiece model lengthen a text at most.

    1 for those of Unicode's normal forms. `charsmap`: the bytes of a tree with their number before
    it, and the replacements, each with a zero byte after it.
    """
    if len(charsmap) < 4:
        return 1.0
    replacements = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].split(b"\0")
    longest = max(map(len, replacements))
    return 1.0 if longest <= 4 * LONGEST_CHARACTER else float(longest)


def _refusal(what: str) -> ValueError:
    return ValueError(
        f"{JSON} has {what}, more than any model needs; use the tokenizer the model was trained "
        "with"
    )


def structure(data: dict[str, Any]) -> str:
    """The rules of a tokenizer.json as JSON, without its vocabulary."""
    return json.dumps({kind: data.get(kind) for kind in ("normalizer", "pre_tokenizer", "decoder")})
