"""Rows put into groups: who answered (variants), what was asked (questions), and the numbers of each group."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ctxext.evals.power import effective_trials
from ctxext.evals.stats import Interval, wilson

Row = dict[str, Any]
Series = tuple[str, str]
T = TypeVar("T")
BINS = (0, 0.25, 0.5, 1, 1.5, 2, 3, 4)
"""Edges of the distance bins in windows; beyond 4 they double."""


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row per checkpoint, method and item: the newest, in the place of the first."""
    return list({(*series(row), row["item"], condition(row)): row for row in rows}.values())


def series(row: Row) -> Series:
    """What answered: (checkpoint, method)."""
    return row["checkpoint"], row["method"]


def settings(row: Row) -> str:
    """What an item shares with all others of its evaluation: rows with different settings are never put together."""
    return row["item"].split("/")[1]


def condition(row: Row) -> str:
    """Controls say "no-needle" or "needle-only"; a question proper says "needle", or nothing."""
    return row.get("condition", "needle")


def asks(row: Row) -> bool:
    """Rows of questions about a text, suites of tasks included; not those of perplexity."""
    return row["eval"] == "retrieval" or "suite" in row


def document(row: Row) -> Any:
    """The unit of chance: the document that the haystack, or the text, was taken from; without any, the item."""
    return (
        row["document"]
        if "document" in row
        else row["haystack"][0][0]
        if row["haystack"]
        else row["item"]
    )


def text(row: Row) -> str:
    """What a question shares with the others about its text; the item where it has a text of its own."""
    return row.get("exam", row["item"])


def share(found: Sequence[Row], field: str = "correct") -> Interval:
    """The rate of a true-or-false field, its Wilson interval by what the questions are worth that share texts."""
    hits = [row[field] for row in found]
    return wilson(
        sum(hits), len(hits), effective_trials=effective_trials(hits, [text(row) for row in found])
    )


@dataclass(frozen=True)
class Variant:
    """A checkpoint under a method; `rope` and `steps` are None where rows of an older version do not say."""

    series: Series
    name: str
    """What it is called beside the others."""
    window: int
    rope: str | None
    steps: int | None

    @property
    def trained(self) -> bool:
        return bool(self.steps)

    @property
    def what(self) -> str:
        """The method alone, without how long it was trained."""
        return re.sub(r", (zero-shot|\d+ steps?( at \d+)?)$", "", self.series[1])

    @property
    def plain(self) -> bool:
        """Neither frequencies nor attention changed."""
        return self.rope == "none" and self.what == "none"

    @property
    def words(self) -> str:
        """As in a sentence: yarn(factor=4) after 60 steps."""
        if self.steps is None:
            return self.name
        where = self.name[len(self.series[1]) :]
        return (
            f"{self.what} after {self.steps} steps{where}"
            if self.trained
            else f"{self.what}, zero-shot{where}"
        )


def names(cells: Iterable[Row]) -> dict[Series, str]:
    """A name per (checkpoint, method), with the checkpoint only where there are several."""
    found = list(dict.fromkeys(map(series, cells)))
    several = len({checkpoint for checkpoint, _ in found}) > 1
    return {(c, m): f"{m} ({c})" if several and c else m for c, m in found}


def variants(rows: Sequence[Row]) -> list[Variant]:
    """Everything that answered, in order of appearance."""
    first: dict[Series, Row] = {}
    for row in rows:
        first.setdefault(series(row), {}).update(
            {k: row[k] for k in ("window", "rope", "steps") if k in row}
        )
    called = names(rows)
    return [
        Variant(key, called[key], x["window"], x.get("rope"), x.get("steps"))
        for key, x in first.items()
    ]


@dataclass(frozen=True)
class Question:
    """One retrieval task with its settings: the rows of the questions proper, and of the controls."""

    name: str
    """The task, with the settings where the same task was asked in several ways."""
    task: str
    settings: str
    rows: list[Row]
    controls: list[Row]
    variants: list[Variant]

    @property
    def seq_lens(self) -> list[int]:
        return sorted({row["seq_len"] for row in self.rows})

    @property
    def longest(self) -> int:
        return self.seq_lens[-1]

    @property
    def has_depth(self) -> bool:
        """Whether every question is about one place of its text."""
        return all("depth" in row for row in self.rows)

    def of(self, variant: Variant, seq_len: int | None = None) -> list[Row]:
        """The rows of an variant, of one length or of all."""
        return [
            r for r in self.rows if series(r) == variant.series and seq_len in (None, r["seq_len"])
        ]


def questions(rows: Iterable[Row]) -> list[Question]:
    """The retrieval tasks among rows. Controls go to the questions of their settings, else of their task."""
    asked = [row for row in latest(rows) if asks(row)]
    proper = group([row for row in asked if condition(row) == "needle"], settings)
    tasks = {
        key: json.dumps(found[0]["task"], sort_keys=True) for key, found in reversed(proper.items())
    }
    by_task = {task: key for key, task in tasks.items()}
    controls: dict[Any, list[Row]] = {}
    for row in asked:
        if condition(row) != "needle":
            key = settings(row).removesuffix(f"-{condition(row)}")
            key = key if key in proper else by_task.get(json.dumps(row["task"], sort_keys=True))
            controls.setdefault(key, []).append(row)
    known = {variant.series: variant for variant in variants(list(rows))}
    asked_as = [found[0].get("label") or found[0]["task"]["name"] for found in proper.values()]
    return [
        Question(
            f"{name} [{key}]" if asked_as.count(name) > 1 else name,
            found[0]["task"]["name"],
            key,
            found,
            controls.get(key, []),
            [known[s] for s in dict.fromkeys(map(series, found))],
        )
        for name, (key, found) in zip(asked_as, proper.items(), strict=True)
    ]


def group(things: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Rows, or pairs of them, by key; keys and things in order of appearance."""
    groups: dict[Any, list[T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def cells(rows: Sequence[Row], measure: Callable[[list[Row]], Row]) -> list[Row]:
    """An entry per settings, checkpoint, method and length (and condition of a control)."""
    out = []
    for (kind, where, made, *_), found in group(
        rows, lambda row: (settings(row), *series(row), row["seq_len"], condition(row))
    ).items():
        first = found[0]
        task = {"task": first["task"]["name"]} if "task" in first else {}
        control = {} if condition(first) == "needle" else {"condition": condition(first)}
        label = {"settings": kind, "checkpoint": where, "method": made, "seq_len": first["seq_len"]}
        beyond = {"window": first["window"], "beyond_window": first["seq_len"] > first["window"]}
        out.append({**task, **control, **label, **beyond, **measure(found)})
    return out


def rate(found: list[Row]) -> Row:
    """k/n with its Wilson interval, and how likely the answers were on average."""
    right = sum(row["correct"] for row in found)
    value, low, high = share(found)
    probability = sum(row["answer_probability"] for row in found) / len(found)
    nll = sum(row["answer_nll"] for row in found) / len(found)
    return {
        "correct": right,
        "n": len(found),
        "rate": value,
        "low": low,
        "high": high,
        "answer_probability": probability,
        "answer_nll": nll,
    }


def distance_bin(row: Row) -> tuple[float, float]:
    """The bin (low, high), in windows, that the distance from the needle to the end falls into; low <= x < high."""
    x, edges = row["distance"] / row["window"], list(BINS)
    while x >= edges[-1]:
        edges.append(2 * edges[-1])
    return next((a, b) for a, b in zip(edges, edges[1:], strict=False) if a <= x < b)


def signed(x: float) -> str:
    """Whole percentage points with their sign; what rounds to zero is +0."""
    return f"{round(x) + 0:+d}"
