"""The settings and special tokens of a tokenizer, read from its JSON files as transformers does.

tokenizer_config.json has most of them. special_tokens_map.json, an older file, overrules it unless
tokenizer_config.json has the newer key added_tokens_decoder. What neither names is the default of
the tokenizer's class.
"""

from typing import Any

from ctxext.tokenization.tokenizer_files import CONFIG, SPECIAL_MAP, json_object

LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""The special tokens of the class LlamaTokenizer where a checkpoint names none."""


def read_settings(files: dict[str, bytes]) -> dict[str, Any]:
    """tokenizer_config.json, and the special tokens of special_tokens_map.json where they count.

    Raises ValueError naming a file that is not a JSON object.
    """
    settings = json_object(files, CONFIG)
    special_map = json_object(files, SPECIAL_MAP)
    return settings if "added_tokens_decoder" in settings else settings | special_map


def is_llama_class(settings: dict[str, Any]) -> bool:
    """Whether the tokenizer is of the class LlamaTokenizer, fast or not."""
    return str(settings.get("tokenizer_class")).startswith("LlamaTokenizer")


def has_llama_defaults(settings: dict[str, Any]) -> bool:
    """Whether the class is LlamaTokenizer, which it is for a Llama that names no class too."""
    return settings.get("tokenizer_class") is None or is_llama_class(settings)


def token_text(token: Any) -> str | None:
    """The text of a special token: a string, or an object with one. None for anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def special_contents(settings: dict[str, Any]) -> set[str]:
    """The texts of all tokens that the settings name as special."""
    named = [value for key, value in settings.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key) or []
        named += listed.values() if isinstance(listed, dict) else listed
    return {text for text in map(token_text, named) if text is not None}
