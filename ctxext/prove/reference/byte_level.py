"""Byte-level BPE from the keys of a GGUF file, with the expressions in llama.cpp's source."""

from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from ctxext.prove.reference.gguf_vocabulary import NORMAL, WITH_BOS, entries, merges

USER_DEFINED = 4
"""The type of a token that counts wherever a text has it."""
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
ANY_CASE = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREES = (rf"{ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{PUNCTUATION}",)
SINGLE = (rf"{ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{PUNCTUATION}",)
WHOLE_WORDS = WITH_BOS
"""Where a whole word of the vocabulary is taken as it is."""
SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt"), (WORDS,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", WORDS)),
    **dict.fromkeys((*WHOLE_WORDS, "dbrx", "smaug-bpe"), THREES),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"), SINGLE),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", WORDS, "[0-9][0-9][0-9]"),
}


def open_byte_level(keys: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a file. Raises ValueError for a way to split that is not read here."""
    pre = keys.get("tokenizer.ggml.pre")
    if pre not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre {pre!r} is not read here")
    tokens = entries(keys, "tokens")
    vocabulary = {text: i for i, text in enumerate(tokens)}
    pairs = merges(keys)
    strange = next(
        (pair for pair in pairs if not {*pair, "".join(pair)} <= vocabulary.keys()), None
    )
    if strange is not None:
        raise ValueError(
            f"tokenizer.ggml.merges has {' '.join(strange)!r:.60}, whose parts are not all tokens"
        )
    bpe = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in WHOLE_WORDS)
    tokenizer = tokenizers.Tokenizer(bpe)
    splits = [
        pre_tokenizers.Split(tokenizers.Regex(expression), "isolated") for expression in SPLITS[pre]
    ]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    types = entries(keys, "token_type", NORMAL)
    for text, token_type in zip(tokens, types, strict=True):
        if token_type == USER_DEFINED:
            added = tokenizers.AddedToken(text, normalized=False, special=False)
            tokenizer.add_tokens([added])
    return tokenizer
