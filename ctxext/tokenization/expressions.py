"""The regular expressions by which published byte-level tokenizers divide a text into words."""

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
"""The expression of GPT-2, which the byte-level part of a tokenizer.json uses by itself."""


def _words_and_numbers(numbers: str) -> str:
    return (
        rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


DIGIT = r"\p{N}"
LLAMA3 = _words_and_numbers(r"\p{N}{1,3}")
QWEN2 = _words_and_numbers(DIGIT)
DIGITS = r"\p{N}+"
THREE_DIGITS = "[0-9][0-9][0-9]"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
"""What the tokenizers library calls punctuation, which has ASCII's symbols among it."""
EXPRESSIONS = frozenset({GPT2, DIGIT, LLAMA3, QWEN2, DIGITS, THREE_DIGITS, PUNCTUATION})
