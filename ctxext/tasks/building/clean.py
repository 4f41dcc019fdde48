"""Haystack text in which an answer does not stand by chance, so that finding it means having read its needle."""

import re
from collections.abc import Sequence

import numpy as np

from ctxext.tasks.base import Encoder, Haystack, draw_haystack

SHORT = 16
"""Tokens: a piece that a forbidden string leaves shorter than this is drawn anew; also how far back a join is read."""
TRIES, CHUNK = 64, 2048


def mentions(strings: Sequence[str]) -> re.Pattern[str]:
    """Matches any of `strings` as whole words, letters of either case, whatever stands between the words."""
    words = sorted({" ".join(string.split()) for string in strings} - {""}, key=len, reverse=True)
    alternatives = "|".join(r"\W+".join(map(re.escape, string.split(" "))) for string in words)
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)" if words else r"(?!)", re.IGNORECASE)


def says(text: str, strings: Sequence[str]) -> bool:
    """Whether one of `strings` stands in `text` as `mentions` means it; quick where their first words do not."""
    lower = text.lower()
    return (
        any(string.split()[0].lower() in lower for string in strings)
        and mentions(strings).search(text) is not None
    )


def draw_without(
    rng: np.random.Generator,
    tokenizer: Encoder,
    haystack: Haystack,
    count: int,
    forbidden: Sequence[str],
) -> tuple[np.ndarray, list[list[int]]]:
    """`count` tokens of running text in which none of `forbidden` stands: int32[count] and pieces, as `draw_haystack`.

    A piece ends where one of them would begin, and another follows. Raises ValueError if too many pieces come to
    nothing.
    """
    pattern, text, pieces, failed = mentions(forbidden), np.zeros(0, np.int32), [], 0
    while len(text) < count:
        for document, start, length in draw_haystack(rng, haystack, count - len(text))[1]:
            piece = np.asarray(haystack[document][start : start + length], np.int32)
            clean = _clean(tokenizer, text[-SHORT:], piece, pattern)
            if clean == length or clean >= SHORT:
                text = np.concatenate([text, piece[:clean]])
                pieces.append([document, start, clean])
            elif (failed := failed + 1) == TRIES:
                raise ValueError(
                    f"the haystack says {' or '.join(map(repr, forbidden))} all over, so that a guess "
                    "would look like an answer that was read: give it other text"
                )
    return text, pieces


def _clean(
    tokenizer: Encoder, before: np.ndarray, piece: np.ndarray, pattern: re.Pattern[str]
) -> int:
    """How many tokens of `piece` can follow `before` until the pattern matches; read in chunks, it may be long."""
    ids, first = np.concatenate([before, piece]).tolist(), len(before)
    for at in range(first, len(ids), CHUNK):
        begin = max(0, at - SHORT)
        found = pattern.search(tokenizer.decode(ids[begin : at + CHUNK]))
        if found is None:
            continue
        low, high = (
            at,
            min(at + CHUNK, len(ids)),
        )  # to the most tokens whose text ends before the match
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(tokenizer.decode(ids[begin:middle])) <= found.start()
            low, high = (middle, high) if fits else (low, middle - 1)
        while low > first and pattern.search(tokenizer.decode(ids[max(0, low - CHUNK) : low])):
            low -= 1
        return low - first
    return len(piece)
