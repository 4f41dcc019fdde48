"""ROUGE-L (Lin 2004) as two packages define it, which differ in sentences, words and counts."""

import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

SHORTEST_STEMMED = 4
"""Letters of a word from which on it is stemmed."""
SKIP_WRITTEN, SKIP_RIGHT, TAKE_BOTH = range(3)
"""Steps back from the ends of two texts: over the last word of one, or over a shared one."""


def rouge_l(text: str, reference: str) -> float:
    """F of ROUGE-L as the package `rouge` computes it, which is what LongBench reports.

    Sentences end with full stops. The words of a longest common subsequence of every sentence of a
    reference and every written one are put together as a set U; with the distinct words R of the
    reference and W of the text, F = 2 P Q / (P + Q + 1e-8), where P = |U| / |W| and Q = |U| / |R|.
    """
    written = _sentences(text)
    right = _sentences(reference)
    if not written or not right:
        return 0.0
    shared: set[str] = set()
    for sentence in right:
        for other in written:
            indices = _common(sentence, other, first_skips="written")
            shared |= {sentence[i] for i in indices}
    precision = len(shared) / len({word for sentence in written for word in sentence})
    recall = len(shared) / len({word for sentence in right for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_lsum(text: str, reference: str, *, stem: Callable[[str], str] | None = None) -> float:
    """F of ROUGE-Lsum as the package `rouge-score` computes it.

    Sentences are lines; words are runs of the letters a to z and digits in lower case. A word of a
    reference's sentence is matched if it is in a longest common subsequence with any written
    sentence; each match takes one of that word from both texts, as long as there is one. With the
    matches M and the words of both texts, F = 2 P Q / (P + Q), P = M / written, Q = M / right.

    stem: the stem of a word of at least four letters; None leaves words as they are.
    """
    written = [_plain_words(line, stem) for line in text.split("\n")]
    right = [_plain_words(line, stem) for line in reference.split("\n")]
    left_written = Counter(word for sentence in written for word in sentence)
    left_right = Counter(word for sentence in right for word in sentence)
    num_written = left_written.total()
    num_right = left_right.total()
    matches = 0
    for sentence in right:
        indices = {i for other in written for i in _common(sentence, other, first_skips="right")}
        for word in (sentence[i] for i in sorted(indices)):
            if left_written[word] and left_right[word]:
                left_written[word] -= 1
                left_right[word] -= 1
                matches += 1
    return 2 * matches / (num_written + num_right) if matches else 0.0


@functools.cache
def porter_stem() -> Callable[[str], str]:
    """The stemmer of `rouge-score`: Porter's with the extensions of the package nltk.

    Raises ValueError if that is not installed.
    """
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        raise ValueError(
            "stems of words need the package nltk: pip install 'ctxext[benchmarks]'"
        ) from None
    return PorterStemmer().stem


def has_stemmer() -> bool:
    """Whether `porter_stem` can be called."""
    return importlib.util.find_spec("nltk") is not None


def _sentences(text: str) -> list[list[str]]:
    """The words of each sentence; one of spaces alone has an empty word, as published."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _plain_words(line: str, stem: Callable[[str], str] | None) -> list[str]:
    words = re.findall("[a-z0-9]+", line.lower())
    if stem is None:
        return words
    return [stem(word) if len(word) >= SHORTEST_STEMMED else word for word in words]


def _common(
    right: Sequence[str], written: Sequence[str], *, first_skips: Literal["right", "written"]
) -> set[int]:
    """Indices into `right` of a longest common subsequence.

    Of several, the one that is found from the ends by skipping a word of `first_skips` wherever a
    word of either may be skipped. Holds a byte for each pair of words, and one row of lengths.
    """
    skips_right_at_ties = first_skips == "right"
    rows = []
    above = [0] * (len(written) + 1)
    for word in right:
        row = bytearray(len(written))
        lengths = [0]
        for j, other in enumerate(written):
            without_right = above[j + 1]
            without_written = lengths[j]
            if word == other:
                row[j] = TAKE_BOTH
                lengths.append(above[j] + 1)
            elif without_right > without_written or (
                skips_right_at_ties and without_right == without_written
            ):
                row[j] = SKIP_RIGHT
                lengths.append(without_right)
            else:
                lengths.append(without_written)
        rows.append(row)
        above = lengths
    indices: set[int] = set()
    i = len(right) - 1
    j = len(written) - 1
    while i >= 0 and j >= 0:
        step = rows[i][j]
        if step == TAKE_BOTH:
            indices.add(i)
        if step in (TAKE_BOTH, SKIP_RIGHT):
            i -= 1
        if step in (TAKE_BOTH, SKIP_WRITTEN):
            j -= 1
    return indices
