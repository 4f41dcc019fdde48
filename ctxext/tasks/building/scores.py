"""The score of a written answer, and the kind of mistake of a wrong one."""

import os
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

from ctxext.tasks.building.published_scores import PUBLISHED_SCORES
from ctxext.tasks.building.structured_scores import ndcg, prefixed_ratio, set_f1

Metric = Literal[
    "exact",
    "all",
    "any",
    "f1",
    "label",
    "first-number",
    "last-number",
    "set-f1",
    "ndcg@10",
    "prefixed-ratio",
    "longbench:f1",
    "longbench:rouge-l",
    "longbench:chinese-f1",
    "longbench:chinese-rouge-l",
    "longbench:classes",
    "longbench:numbers",
    "longbench:code",
    "longbench-v2:choice",
    "infinitebench:number",
    "infinitebench:word",
    "infinitebench:name",
    "infinitebench:code-run",
    "infinitebench:math-find",
    "infinitebench:code-debug",
    "infinitebench:choice",
    "infinitebench:characters",
    "infinitebench:rouge-lsum",
    "helmet:contains",
    "helmet:label",
    "helmet:book-rouge-lsum",
    "helmet:lawsuit-rouge-lsum",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
Failure = Literal[
    "part",
    "distractor",
    "copied",
    "no number",
    "made up",
    "nothing",
    "next number",
    "truncated",
    "first digits",
    "right beginning",
]
"""The kinds of mistake, see `failure`."""


def score(
    metric: Metric, text: str, references: Sequence[str], *, labels: Sequence[str] = ()
) -> float:
    """0..1 for `text`, the newly written text alone, against the right answers.

    all: the share of references that the text contains; any: whether it contains one (RULER's two
    measures, case ignored); f1: the best word F1 over references (SQuAD's); label: 1 if the text
    contains a reference and no other of `labels` (BABILong's); first-number, last-number: 1 if that
    number of the text is a reference (landmark attention's and LongEval's); exact: 1 if the
    stripped text is a reference; set-f1: of the names in the first line; ndcg@10: of a ranking,
    the references being its relevant ids, each as often as its grade; prefixed-ratio: likeness
    after a required beginning, the references being that beginning and the whole answer
    (`structured_scores`); names with a colon: `published_scores`. Raises ValueError without
    references.
    """
    if not references:
        raise ValueError("an answer is scored against references: give at least one")
    lower = text.lower()
    contained = [reference.lower() in lower for reference in references]
    match metric:
        case "all":
            return sum(contained) / len(contained)
        case "any":
            return float(any(contained))
        case "f1":
            return max(word_f1(text, reference) for reference in references)
        case "label":
            right = {reference.lower() for reference in references}
            wrong = {label.lower() for label in labels} - right
            return float(any(contained) and not any(label in lower for label in wrong))
        case "first-number" | "last-number":
            numbers = re.findall(r"\d+", text)
            if not numbers:
                return 0.0
            number = numbers[0 if metric == "first-number" else -1]
            return float(int(number) in {int(reference) for reference in references})
        case "set-f1":
            return set_f1(text, references)
        case "ndcg@10":
            return ndcg(text, references)
        case "prefixed-ratio":
            return prefixed_ratio(text, *references)
        case "exact":
            return float(text.strip() in references)
    if metric in PUBLISHED_SCORES:
        return PUBLISHED_SCORES[metric](text, references, labels)
    raise ValueError(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}")


def word_f1(text: str, reference: str) -> float:
    """2 P R / (P + R) over lower-case words without articles and punctuation (arXiv 1606.05250).

    Where one side has no words: 1 if neither has any, else 0.
    """
    words = _words(text)
    reference_words = _words(reference)
    if not words or not reference_words:
        return float(words == reference_words)
    shared = sum((Counter(words) & Counter(reference_words)).values())
    return 2 * shared / (len(words) + len(reference_words))


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def failure(
    text: str, references: Sequence[str], *, distractors: Sequence[str] = (), prompt: str = ""
) -> Failure:
    """The kind of mistake of a wrong answer; the first that applies.

    "nothing": no letters or digits; "distractor": a wrong value from the prompt; "next number": one
    more than the right value or a wrong one, as if they were counted; "part": some of several
    answers, or the beginning of one in words; "truncated": a right number without its last digits;
    "first digits": a number whose first two or more digits are right, and not the rest; "right
    beginning": words of which the first is right, and not the rest (of a single word, at least half
    of its letters and three); "no number" where one was asked for; "copied": its first line is in
    the prompt; "made up": anything else.
    """
    lower = text.lower()
    line = text.strip().split("\n")[0].strip()
    if not any(c.isalnum() for c in text):
        return "nothing"
    if any(distractor.lower() in lower for distractor in distractors):
        return "distractor"
    if _is_next_number(text, [*references, *distractors]):
        return "next number"
    numbers = re.findall(r"[0-9]+", text)
    digits = numbers[0] if numbers else ""
    contains_one = any(reference.lower() in lower for reference in references)
    begins_one = len(line) > 1 and any(
        reference.lower().startswith(line.lower()) for reference in references
    )
    if not contains_one and len(digits) > 1:
        numeric = [reference for reference in references if reference.isdigit()]
        if any(reference.startswith(digits) for reference in numeric):
            return "truncated"
        # By luck, one number in ninety begins with the same two digits.
        if any(reference.startswith(digits[:2]) for reference in numeric):
            return "first digits"
    if contains_one or begins_one:
        return "part"
    if any(_begins_like(line, reference) for reference in references):
        return "right beginning"
    if all(reference.isdigit() for reference in references) and not digits:
        return "no number"
    return "copied" if line and line in prompt else "made up"


def _begins_like(line: str, reference: str) -> bool:
    """Whether a line has the first word of an answer in words, or the larger part of a single one.

    Numbers have kinds of mistakes of their own.
    """
    first, *rest = re.findall(r"\w+", reference.lower()) or [""]
    written = re.findall(r"\w+", line.lower()) or [""]
    if first.isdigit():
        return False
    if rest and len(first) > 1:
        return written[0] == first
    shared = len(os.path.commonprefix([written[0], first]))
    return shared >= max(3, len(first) / 2)


def _is_next_number(text: str, values: Sequence[str]) -> bool:
    """Whether the first number of a text is one more than a value that is a whole number."""
    numbers = re.findall(r"[0-9]+", text)
    counted = {int(value) + 1 for value in values if re.fullmatch(r"[0-9]+", value)}
    return bool(numbers) and int(numbers[0]) in counted
