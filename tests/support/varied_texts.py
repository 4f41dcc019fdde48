"""Texts of many kinds, on which two tokenizers that agree give the same ids."""

import random
from collections.abc import Sequence

KINDS: dict[str, Sequence[str]] = {
    "words": ["the", " quick", " brown", " Fox", "'s", "'LL", " don't", "ing", " naïve", "é", "ß"],
    "whitespace": [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n\n", "\u00a0", "\u3000", "a", " b"],
    "digits": ["0", "1", "12", "345", " 6789", "1,000.50", "-7", "٣", "²", "½", "1e-5", " 2026"],
    "punctuation": list("!?.,;:()[]{}<>|/\\@#$%^&*_-+=~`\"'") + ["...", "—", "«", "。", " "],
    "emoji": ["🙂", "👩‍👩‍👧", "🇫🇷", "👍🏽", "❤️", " ", "\u200d", "\ufe0f", "a"],
    "CJK": ["日本語", "中文", "한국어", "の", "，", "、", "Ａ", " ", "漢字kana"],
    "scripts": ["Привет", " мир", "שלום", "مرحبا", "नमस्ते", "ไทย", "Ελλάδα", "e\u0301", "ﬁ"],
    "code": [
        "def f(x):",
        "\n    ",
        "return ",
        "x += 1",
        "->",
        "!=",
        "{}",
        "\t",
        "// ",
        "snake_case",
    ],
}


def varied_texts(num: int, special: Sequence[str] = (), seed: int = 0) -> list[str]:
    """`num` texts of each of the KINDS, and as many of all kinds mixed with `special` tokens."""
    rng = random.Random(seed)
    everything = [part for parts in KINDS.values() for part in parts]
    copies = len(everything) // (3 * max(1, len(special)))
    mixed = [*everything, *(list(special) * copies)]
    return [
        "".join(rng.choices(parts, k=rng.randint(1, 12)))
        for parts in (*KINDS.values(), mixed)
        for _ in range(num)
    ]
