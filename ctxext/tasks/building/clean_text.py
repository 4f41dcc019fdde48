"""Haystack text that does not contain an answer by chance: finding it means reading its needle."""

import re
from collections.abc import Sequence

import numpy as np

from ctxext.tasks.base import TaskContext, as_ids
from ctxext.tokenization.protocol import TokenizerLike

MIN_EXCERPT = 16
"""Tokens: an excerpt cut shorter than this is drawn again; also how far back a join is searched."""
MAX_FAILURES = 64
CHUNK = 2048
"""Tokens decoded and searched at a time."""


def mention_pattern(strings: Sequence[str]) -> re.Pattern[str]:
    """Matches any of `strings` as whole words, ignoring case and what is between the words."""
    words = sorted({" ".join(string.split()) for string in strings} - {""}, key=len, reverse=True)
    alternatives = "|".join(r"\W+".join(map(re.escape, string.split(" "))) for string in words)
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)" if words else r"(?!)", re.IGNORECASE)


def mentions(text: str, strings: Sequence[str]) -> bool:
    """Whether `text` contains one of `strings` as `mention_pattern` means it.

    Quick where not even a first word occurs.
    """
    lower = text.lower()
    if not any(string.split()[0].lower() in lower for string in strings):
        return False
    return mention_pattern(strings).search(text) is not None


def draw_without(
    context: TaskContext, count: int, forbidden: Sequence[str]
) -> tuple[np.ndarray, list[list[int]]]:
    """`count` tokens of running text that mention none of `forbidden`, like `draw_haystack`.

    An excerpt ends where a forbidden string would begin, and another follows. Raises ValueError if
    too many excerpts come to nothing.
    """
    pattern = mention_pattern(forbidden)
    text = np.zeros(0, np.int32)
    excerpts = []
    failures = 0
    while len(text) < count:
        for document, start, length in context.draw_haystack(count - len(text))[1]:
            excerpt = as_ids(context.haystack[document][start : start + length])
            clean = _clean_length(context.tokenizer, text[-MIN_EXCERPT:], excerpt, pattern)
            if clean == length or clean >= MIN_EXCERPT:
                text = np.concatenate([text, excerpt[:clean]])
                excerpts.append([document, start, clean])
                continue
            failures += 1
            if failures == MAX_FAILURES:
                raise ValueError(
                    f"the haystack mentions {' or '.join(map(repr, forbidden))} all over, so that "
                    "a guess would look like an answer that was read: give it other text"
                )
    return text, excerpts


def _clean_length(
    tokenizer: TokenizerLike, before: np.ndarray, excerpt: np.ndarray, pattern: re.Pattern[str]
) -> int:
    """How many tokens of `excerpt` can follow `before` until the pattern matches."""
    ids = np.concatenate([before, excerpt]).tolist()
    first = len(before)
    for start in range(first, len(ids), CHUNK):
        begin = max(0, start - MIN_EXCERPT)
        match = pattern.search(tokenizer.decode(ids[begin : start + CHUNK]))
        if match is None:
            continue
        # Bisect to the most tokens whose text ends before the match.
        low = start
        high = min(start + CHUNK, len(ids))
        while low < high:
            middle = (low + high + 1) // 2
            if len(tokenizer.decode(ids[begin:middle])) <= match.start():
                low = middle
            else:
                high = middle - 1
        while low > first and pattern.search(tokenizer.decode(ids[max(0, low - CHUNK) : low])):
            low -= 1
        return low - first
    return len(excerpt)
