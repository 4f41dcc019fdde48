"""Scores of answers that are a set of names, a ranking, or a text to repeat."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence

EMPTY_SET = "none"
"""The word for a set without members."""
RANKS = 10
"""Places of a ranking that count."""


def set_f1(text: str, names: Sequence[str]) -> float:
    """2 |P & T| / (|P| + |T|) of the names P that the first line lists and the right ones T.

    That is 2 R P / (R + P) of recall and precision, as GraphWalks scores (OpenAI, 2025). The empty
    set is written "none"; where both are empty, which that formula leaves open, the score is 1.
    """
    listed = written_names(text)
    right = set(names) - {EMPTY_SET}
    if not listed and not right:
        return float(EMPTY_SET in text.lower())
    return 2 * len(listed & right) / (len(listed) + len(right))


def written_names(text: str) -> set[str]:
    """The names that the first line of a text lists, in lower case, without brackets and "none"."""
    line = text.strip().partition("\n")[0].lower()
    return {name.strip(" \t[]{}().") for name in line.split(",")} - {"", EMPTY_SET}


def ndcg(text: str, graded: Sequence[str]) -> float:
    """NDCG@10 of the ranking that a text writes as ids between ">": DCG / DCG of the best ranking.

    DCG = sum over ranks i = 1..10 of grade / log2(i + 1), as trec_eval counts it and HELMET reports
    (arXiv 2410.02694). graded: every relevant id as often as its grade says. An id that is written
    twice counts where it is first. The longest run of numbers and ">" is the ranking.
    """
    grades = Counter(graded)
    gains = [grades[written] for written in written_ranking(text)]
    return _dcg(gains) / _dcg(sorted(grades.values(), reverse=True))


def written_ranking(text: str) -> list[str]:
    """The ids of the longest run of whole numbers with ">" between them, each once."""
    plain = re.sub(r"[\[\]:]", "", text).lower().replace("id", "")
    runs = re.findall(r"\d+(?:\s*>\s*\d+)*", plain)
    longest = max(runs, key=len, default="")
    return list(dict.fromkeys(re.findall(r"\d+", longest)))


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:RANKS]))


def prefixed_ratio(text: str, prefix: str, answer: str) -> float:
    """How alike a text and the answer are after a prefix that both must begin with; 0 without it.

    The ratio is 2 M / T: the characters M in matching blocks (`difflib.SequenceMatcher`) and both
    lengths T together, as MRCR scores (OpenAI, 2025; the task is of arXiv 2409.12640). Space around
    the text does not count.
    """
    stripped = text.strip()
    if not stripped.startswith(prefix):
        return 0.0
    written = stripped.removeprefix(prefix)
    return difflib.SequenceMatcher(None, written, answer.strip().removeprefix(prefix)).ratio()
