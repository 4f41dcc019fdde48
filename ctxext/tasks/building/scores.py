"""How a written answer is scored, and what kind of mistake a wrong one is: pure functions of texts."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

Metric = Literal["exact", "all", "any", "f1", "label", "first-number", "last-number"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def score(
    metric: Metric, text: str, references: Sequence[str], *, labels: Sequence[str] = ()
) -> float:
    """0..1 for `text`, newly written text alone, against the right answers.

    all: the share of references that the text contains, any: whether it contains one (RULER's two measures, letters of
    either case); f1: the best word F1 over references (SQuAD's); label: 1 if the text contains the reference and no
    other of `labels` (BABILong's); first-number, last-number: 1 if that number of the text is the reference (landmark's
    and LongEval's); exact: 1 if the stripped text is a reference. Raises ValueError without references.
    """
    if not references:
        raise ValueError("an answer is scored against references: give at least one")
    lower = text.lower()
    found = [reference.lower() in lower for reference in references]
    match metric:
        case "all":
            return sum(found) / len(found)
        case "any":
            return float(any(found))
        case "f1":
            return max(word_f1(text, reference) for reference in references)
        case "label":
            others = {label.lower() for label in labels} - {
                reference.lower() for reference in references
            }
            return float(any(found) and not any(label in lower for label in others))
        case "first-number" | "last-number":
            numbers = re.findall(r"\d+", text)
            wanted = {int(reference) for reference in references}
            return float(
                bool(numbers) and int(numbers[0 if metric == "first-number" else -1]) in wanted
            )
        case "exact":
            return float(text.strip() in references)
    raise ValueError(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}")


def word_f1(text: str, reference: str) -> float:
    """2 P R / (P + R) over words in lower case, without articles and punctuation (SQuAD, arXiv 1606.05250).

    Where one side has no words, 1 if neither has any, else 0.
    """
    wrote, wanted = _words(text), _words(reference)
    if not wrote or not wanted:
        return float(wrote == wanted)
    shared = sum((Counter(wrote) & Counter(wanted)).values())
    return 2 * shared / (len(wrote) + len(wanted))


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def failure(
    text: str, references: Sequence[str], *, decoys: Sequence[str] = (), prompt: str = ""
) -> str:
    """What kind of mistake a wrong answer is; the first that applies.

    "nothing": no letters or digits; "decoy": a wrong value that stands in the prompt for another record; "part": some
    of several answers, or the beginning of one; "no number" where one was asked for; "copied": its first line stands
    in the prompt; "made up": anything else.
    """
    line, lower = text.strip().split("\n")[0].strip(), text.lower()
    if not any(c.isalnum() for c in text):
        return "nothing"
    if any(decoy.lower() in lower for decoy in decoys):
        return "decoy"
    if any(reference.lower() in lower for reference in references) or any(
        len(line) > 1 and reference.lower().startswith(line.lower()) for reference in references
    ):
        return "part"
    if all(reference.isdigit() for reference in references) and not any(c.isdigit() for c in text):
        return "no number"
    return "copied" if line and line in prompt else "made up"
