"""What can be measured of answers beside right and wrong, each with its interval and its level of chance."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ctxext.evals.stats import Interval, ratio_bootstrap, wilson
from ctxext.report.analysis.records import Question, Row, cells, document, rate, share

FRACTIONAL = ("f1", "all")
"""Metrics whose score may lie between 0 and 1."""


class Measure(NamedTuple):
    """A number of the answers to some questions."""

    key: str
    title: str
    """As in: mean score, %."""
    of: Callable[[Sequence[Row]], Interval | None]
    """None where these rows do not have it."""
    form: str
    says: str
    """What it is, in a sentence."""


def right(found: Sequence[Row]) -> Interval | None:
    """Percent right with Wilson's interval."""
    return _percent(share(found))


def score(found: Sequence[Row]) -> Interval | None:
    """Percent of the score where the metric knows parts, with a bootstrap over documents."""
    if not all(row.get("metric") in FRACTIONAL for row in found):
        return None
    values = [row["score"] for row in found]
    if set(values) in ({0.0}, {1.0}):  # a bootstrap of equal scores would be certain
        return _percent(wilson(round(sum(values)), len(values)))
    return _percent(ratio_bootstrap(values, [1] * len(values), [document(row) for row in found]))


def choice(found: Sequence[Row]) -> Interval | None:
    """Percent in which the right answer was the most likely of several, with Wilson's interval."""
    if not all(row.get("choices", 1) > 1 for row in found):
        return None
    return _percent(share(found, "chosen"))


def nats(found: Sequence[Row]) -> Interval | None:
    """Mean nats per token of the right answer, with a bootstrap over documents."""
    return ratio_bootstrap(
        [row["answer_nll"] for row in found], [1] * len(found), [document(row) for row in found]
    )


def chance(found: Sequence[Row]) -> float | None:
    """Percent that choosing at random gives: the mean of 1/K."""
    return 100 * sum(1 / row["choices"] for row in found) / len(found) if choice(found) else None


RIGHT = Measure(
    "right", "right answers, %", right, ".0f", "Percent right with 95 % Wilson intervals."
)
SCORE = Measure(
    "score",
    "mean score, %",
    score,
    ".0f",
    "Answers that are partly right count in part; 95 % bootstrap intervals over documents.",
)
CHOICE = Measure(
    "choice",
    "right answer chosen, %",
    choice,
    ".0f",
    "How often the right answer is more likely, by nats per token, than every other value that could be "
    "meant; 95 % Wilson intervals.",
)
NATS = Measure(
    "nats",
    "nats per token of the right answer",
    nats,
    ".2f",
    "How unlikely the right answer is, its earlier tokens given; lower is better; 95 % bootstrap intervals "
    "over documents.",
)
BESIDE = (SCORE, CHOICE, NATS)
"""What is shown beside right and wrong, where the rows have it."""


def marks(found: list[Row]) -> dict[str, Any]:
    """`rate` with the other measures: value, low and high of each under its key."""
    more = {m.key: value._asdict() for m in BESIDE if (value := m.of(found))}
    by_chance = {"chance": x} if (x := chance(found)) is not None else {}
    return {**rate(found), **more, **by_chance}


def measured(question: Question, measure: Measure) -> list[Row]:
    """An entry per variant, length and condition: `interval`, and `rows` that it was made of."""

    def entry(found: list[Row]) -> dict[str, Any]:
        return {"interval": measure.of(found), "rows": found}

    made = cells(question.rows, entry) + cells(question.controls, entry)
    return [cell for cell in made if cell["interval"]]


def _percent(share: Interval) -> Interval:
    return Interval(*(None if x is None else 100 * x for x in share))  # pyright: ignore[reportArgumentType]
