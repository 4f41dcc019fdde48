"""The keys of a GGUF file's tokenizer, with what llama.cpp takes for one that is absent."""

from typing import Any

NORMAL = 1
"""The type of a token that merges make."""
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2}, "gpt2": {"bos": 11, "eos": 11}}
"""By the model of the tokenizer: SentencePiece's, or byte-level merges."""
WITH_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
"""Ways to split before byte-level merges by which BOS is added unless a key says otherwise."""


def entries(keys: dict[str, Any], name: str, default: Any = None) -> list[Any]:
    """A list with an entry for each token, or the default for each if the key is absent.

    Raises ValueError for one that is missing without a default, or of another length.
    """
    key = f"tokenizer.ggml.{name}"
    tokens = keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise ValueError("tokenizer.ggml.tokens is missing, and llama.cpp needs it")
    if key not in keys and default is not None:
        return [default] * len(tokens)
    values = keys.get(key)
    if not isinstance(values, list) or len(values) != len(tokens):
        raise ValueError(f"{key} is not a list of {len(tokens)} entries, one for each token")
    return values


def merges(keys: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs that byte-level merges join, the first ones first.

    Raises ValueError if they are missing or malformed.
    """
    values = keys.get("tokenizer.ggml.merges")
    if not isinstance(values, list):
        raise ValueError("tokenizer.ggml.merges is missing, and llama.cpp needs it for gpt2")
    pairs = []
    for value in values:
        left, space, right = value.partition(" ")
        if not space or " " in right:
            raise ValueError(f"tokenizer.ggml.merges has {value!r:.60}, which is no pair")
        pairs.append((left, right))
    return pairs


def around(keys: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The ids before and after a text: BOS and EOS, where the file asks for them.

    Raises ValueError for a model of tokenizers that is not read here.
    """
    model = keys.get("tokenizer.ggml.model")
    if model not in DEFAULT_IDS:
        raise ValueError(
            f"tokenizer.ggml.model {model!r:.60} is not read here, only {' and '.join(DEFAULT_IDS)}"
        )
    has_bos = model == "llama" or keys.get("tokenizer.ggml.pre") in WITH_BOS
    is_added = {
        "bos": keys.get("tokenizer.ggml.add_bos_token", has_bos),
        "eos": keys.get("tokenizer.ggml.add_eos_token", False),
    }
    ids = {
        name: [keys.get(f"tokenizer.ggml.{name}_token_id", default)] if is_added[name] else []
        for name, default in DEFAULT_IDS[model].items()
    }
    return ids["bos"], ids["eos"]
