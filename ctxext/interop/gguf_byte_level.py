"""The vocabulary of a GGUF file from a byte-level tokenizer.json, such as Llama 3's.

llama.cpp splits a text by regular expressions before it merges, and knows them by names. A
tokenizer.json has the expressions themselves.
"""

from typing import Any

from ctxext.tokenization.expressions import (
    DIGIT,
    DIGITS,
    GPT2,
    LLAMA3,
    PUNCTUATION,
    QWEN2,
    THREE_DIGITS,
)
from ctxext.tokenization.tokenizer_files import JSON

NAMES: dict[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (DIGIT, GPT2): "smollm",
    (LLAMA3,): "dbrx",
    (QWEN2,): "qwen2",
    (PUNCTUATION, GPT2, THREE_DIGITS): "falcon",
}
"""The expressions of a pre_tokenizer -> llama.cpp's name for them."""
WHOLE_WORDS: dict[tuple[str, ...], str] = {(LLAMA3,): "llama-bpe"}
"""The same for tokenizers in which a whole word of the vocabulary is not merged (ignore_merges)."""
DIGITS_APART: dict[tuple[str, ...], str] = {(PUNCTUATION, GPT2, DIGITS, THREE_DIGITS): "falcon"}
"""The same where llama.cpp does not divide digits from what is before them, which makes no
difference to a vocabulary without a token that has both."""
LLAMA_CPP_NAMES: dict[str, str] = {
    **{name: name for name in (*NAMES.values(), *WHOLE_WORDS.values())},
    "phi-2": "gpt-2",
    "mpt": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "smaug-bpe": "dbrx",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "pixtral": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "megrez": "qwen2",
    "stablelm2": "qwen2",
}
"""llama.cpp's other names of the same expressions, and the names themselves."""


def byte_level_vocabulary(data: dict[str, Any]) -> dict[str, Any]:
    """The keys tokenizer.ggml.model, pre and merges for the contents of a tokenizer.json.

    Raises ValueError, with the reason, for a tokenizer that llama.cpp would run differently.
    """
    model = data["model"]
    if model.get("type") != "BPE" or not _is_byte_level(data):
        raise _refusal(f"its model is a {model.get('type')}, not a byte-level BPE")
    for part in _parts(data.get("normalizer"), "normalizers"):
        if part.get("type") != "NFC":  # see `normalizes`
            raise _refusal(f"its normalizer, {part.get('type')}, has no field there")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise _refusal(f"{key} of its model has no field there")
    names = WHOLE_WORDS if model.get("ignore_merges") else NAMES
    expressions = tuple(_expressions(data["pre_tokenizer"]))
    if expressions in DIGITS_APART:
        _check_digits(model["vocab"])
        names = DIGITS_APART
    if expressions not in names:
        raise _refusal(f"llama.cpp has no name for its pre_tokenizer {' '.join(expressions)[:60]}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": names[expressions],
        "tokenizer.ggml.merges": merges,
    }


def normalizes(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json brings a text into Unicode's normal form C, as llama.cpp does not.

    Most texts are in that form: other ones get other ids in llama.cpp.
    """
    return bool(_parts(data.get("normalizer"), "normalizers"))


def _check_digits(vocab: dict[str, int]) -> None:
    """Raise ValueError for a token that has digits and other characters."""
    for token in vocab:
        digits = [character.isnumeric() for character in token]
        if any(digits) and not all(digits):
            raise _refusal(
                f"its token {token!r:.60} has digits next to other characters, between which "
                "llama.cpp does not divide a text"
            )


def pre_tokenizer(name: str | None) -> tuple[bool, dict[str, Any]]:
    """(ignore_merges, the pre_tokenizer of a tokenizer.json) for llama.cpp's name of them.

    Raises ValueError for a name that is not known here.
    """
    known = LLAMA_CPP_NAMES.get(name or "")
    if known is None:
        raise ValueError(
            f"tokenizer.ggml.pre {name!r:.60} is not supported; known: "
            f"{', '.join(sorted(LLAMA_CPP_NAMES))}"
        )
    whole_words = known in WHOLE_WORDS.values()
    names = WHOLE_WORDS if whole_words else NAMES
    expressions = next(key for key, value in names.items() if value == known)
    parts: list[dict[str, Any]] = [
        {
            "type": "Split",
            "pattern": {"Regex": expression},
            "behavior": "Isolated",
            "invert": False,
        }
        for expression in expressions
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts.append(byte_level | {"use_regex": False})
    return whole_words, {"type": "Sequence", "pretokenizers": parts}


def _refusal(reason: str) -> ValueError:
    return ValueError(f"{JSON} cannot be written to GGUF: {reason}; use --to hf")


def _parts(part: dict[str, Any] | None, list_key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [inner for item in part[list_key] for inner in _parts(item, list_key)]
    return [part]


def _is_byte_level(data: dict[str, Any]) -> bool:
    splitters = _parts(data.get("pre_tokenizer"), "pretokenizers")
    decoders = _parts(data.get("decoder"), "decoders")
    to_bytes = [part for part in splitters if part.get("type") == "ByteLevel"]
    return len(to_bytes) == 1 and [part.get("type") for part in decoders] == ["ByteLevel"]


def _expressions(pre_tokenizer: dict[str, Any]) -> list[str]:
    """The regular expressions by which a pre_tokenizer splits, in order."""
    expressions = []
    for part in _parts(pre_tokenizer, "pretokenizers"):
        kind = part.get("type")
        pattern = part.get("pattern") or {}
        if kind == "Split" and part.get("behavior") == "Isolated" and "Regex" in pattern:
            expressions.append(pattern["Regex"])
        elif kind == "Digits":
            expressions.append(DIGIT if part.get("individual_digits") else DIGITS)
        elif kind == "Punctuation" and part.get("behavior") == "Contiguous":
            expressions.append(PUNCTUATION)
        elif kind == "ByteLevel" and not part.get("add_prefix_space", True):
            expressions += [GPT2] if part.get("use_regex", True) else []
        else:
            raise _refusal(f"llama.cpp has nothing like its pre_tokenizer {str(part)[:60]}")
    return expressions
