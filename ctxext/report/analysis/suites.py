"""Suites of tasks such as RULER's: the mean over tasks at each length, and which tasks it lacks."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from ctxext.evals.curves import mean_of_means
from ctxext.evals.ruler import RULER_TASKS
from ctxext.evals.stats import Interval
from ctxext.report.analysis.records import Row, condition, document, group, latest, names, series
from ctxext.report.pages.tables import Table, grid

TITLE = (
    "mean score over tasks, % [95 % interval over documents], standard error, tasks asked of all"
)


class Mean(NamedTuple):
    """The mean over tasks (%) of one variant at one length, over documents; `missing` tasks are no part of it."""

    suite: str
    series: tuple[str, str]
    seq_len: int
    percent: Interval
    error: float | None
    """Standard error, points."""
    tasks: tuple[str, ...]
    missing: tuple[str, ...]


def means(rows: Iterable[Row]) -> list[Mean]:
    """Every variant and length of every suite; a task is known by its name and fields, and all weigh the same."""
    asked = [row for row in latest(rows) if row.get("suite") and condition(row) == "needle"]
    found = []
    for suite, of_suite in group(asked, lambda row: row["suite"]).items():
        wanted = _wanted(suite, of_suite)
        for (*who, n), mine in group(of_suite, lambda row: (*series(row), row["seq_len"])).items():
            scores = [row.get("score", float(row["correct"])) for row in mine]
            tasks = [row.get("label") or json.dumps(row["task"], sort_keys=True) for row in mine]
            mean, error = mean_of_means(scores, tasks, [document(row) for row in mine])
            percent = Interval(*(None if x is None else 100 * x for x in mean))  # pyright: ignore[reportArgumentType]
            here = tuple(dict.fromkeys(map(_name, mine)))
            missing = tuple(name for name in wanted if _plain(name) not in map(_plain, here))
            found.append(
                Mean(suite, (who[0], who[1]), n, percent, error and 100 * error, here, missing)
            )
    return found


def _wanted(suite: str, rows: list[Row]) -> list[str]:
    """What anybody was asked, and all of RULER's tasks if these are called like them."""
    here = list(dict.fromkeys(map(_name, rows)))
    is_ruler = suite.startswith("ruler") and set(map(_plain, here)) <= set(RULER_TASKS)
    known = tuple(RULER_TASKS) if is_ruler else ()
    return [*known, *(name for name in here if _plain(name) not in known)]


def _name(row: Row) -> str:
    return row.get("label", "").partition("/")[2] or row["task"]["name"]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _parts(found: list[Mean]) -> tuple[list[int], list[list[str]], list[str]]:
    """Lengths, a line per variant, and what is missing."""
    lengths = sorted({mean.seq_len for mean in found})
    called = names([{"checkpoint": m.series[0], "method": m.series[1]} for m in found])
    at = {(mean.series, mean.seq_len): mean for mean in found}
    lines = [
        [name, *(_cell(at[who, n]) if (who, n) in at else "-" for n in lengths)]
        for who, name in called.items()
    ]
    notes = [
        f"missing {', '.join(missing)}: {_where(those, called)}"
        for missing, those in group([m for m in found if m.missing], lambda m: m.missing).items()
    ]
    return lengths, lines, notes


def _where(found: list[Mean], called: dict[tuple[str, str], str]) -> str:
    """As in: every variant at 256, 512; yarn at 1,024."""
    at = {
        who: ", ".join(f"{m.seq_len:,}" for m in some)
        for who, some in group(found, lambda m: m.series).items()
    }
    alike = group(at, lambda who: at[who])
    return "; ".join(
        f"{'every variant' if len(who) == len(called) else ', '.join(called[w] for w in who)} at {lengths}"
        for lengths, who in alike.items()
    )


def _cell(mean: Mean) -> str:
    low, high = mean.percent.low, mean.percent.high
    bounds = "" if low is None or high is None else f" [{low:.1f}, {high:.1f}]"
    error = "" if mean.error is None else f" SE {mean.error:.1f}"
    tasks = len(mean.tasks)
    return f"{mean.percent.value:.1f}{bounds}{error}, {tasks}/{tasks + len(mean.missing)}"


def text(rows: Iterable[Row]) -> list[str]:
    """A table per suite."""
    parts = []
    for suite, found in group(means(rows), lambda mean: mean.suite).items():
        lengths, lines, notes = _parts(found)
        title = f"{suite}: {TITLE}"
        parts.append("\n".join([grid(title, ["", *map(str, lengths)], lines), *notes]))
    return parts


def tables(rows: Iterable[Row]) -> list[Table]:
    """The same for the page."""
    found = []
    for suite, some in group(means(rows), lambda mean: mean.suite).items():
        lengths, lines, notes = _parts(some)
        title = f"{suite}: {TITLE}"
        note = "".join(f"{x.capitalize()}. " for x in notes).strip()
        found.append(Table(title, ["variant", *(f"{n:,}" for n in lengths)], lines, note))
    return found
