"""Published numbers held against what a run measured, both with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ctxext.evals.expected import Expected
from ctxext.evals.stats import Interval
from ctxext.report.analysis.losses import perplexity
from ctxext.report.analysis.records import condition, group, rate, series
from ctxext.report.analysis.runs import RunData
from ctxext.report.pages.tables import Table, between
from ctxext.serialization import from_json

Verdict = Literal[
    "agrees", "disagrees", "not distinguishable from agreement", "no interval", "not measured"
]


@dataclass(frozen=True)
class Outcome:
    """An expected number and what the trained variant showed; `got` is None where no row measures it."""

    run: str
    expected: Expected
    got: Interval | None

    @property
    def verdict(self) -> Verdict:
        """Agreement is the measured interval inside value +- tolerance, disagreement no point in common.

        In between the data allow both, and one document gives no interval to judge by.
        """
        if self.got is None:
            return "not measured"
        _, low, high = self.got
        if low is None or high is None:
            return "no interval"
        if self.expected.low <= low and high <= self.expected.high:
            return "agrees"
        apart = high < self.expected.low or low > self.expected.high
        return "disagrees" if apart else "not distinguishable from agreement"

    @property
    def wanted(self) -> str:
        """As in: 3.35 ± 0.05."""
        return f"{self._number(self.expected.value)} ± {self._number(self.expected.tolerance)}"

    @property
    def found(self) -> str:
        """As in: 3.41 [3.36, 3.46]."""
        return (
            "nothing" if self.got is None else between(self.got, ".3g" if self._percent else ".2f")
        )

    @property
    def measurement(self) -> str:
        """As in: ppl:truncate at 8,192 tokens."""
        return f"{self.expected.evaluation}{' (%)' * self._percent} at {self.expected.seq_len:,} tokens"

    @property
    def text(self) -> str:
        return (
            f"{self.measurement}: expected {self.wanted} ({self.expected.what}; {self.expected.source}), "
            f"got {self.found}: {self.verdict}."
        )

    @property
    def data(self) -> dict[str, Any]:
        fields = ("evaluation", "seq_len", "metric", "value", "tolerance", "what", "source")
        return {
            "run": self.run,
            **{name: getattr(self.expected, name) for name in fields},
            "verdict": self.verdict,
            "got": self.got and self.got._asdict(),
        }

    @property
    def _percent(self) -> bool:
        return self.expected.metric == "accuracy"

    def _number(self, value: float) -> str:
        return f"{value:g}" if self._percent else f"{value:.2f}"


def outcomes(run: RunData) -> list[Outcome]:
    """Every number that the experiment of a run expects, in its order."""
    steps = run.config.get("train", {}).get("steps")
    mine = [row for row in run.rows if row.get("steps") == steps and row.get("rope") == run.method]
    variant = next(iter(group(mine, series).values()), [])
    return [
        Outcome(run.name, wanted, _measured(wanted, variant))
        for wanted in from_json(run.config.get("expect", []))
    ]


def _measured(wanted: Expected, variant: Sequence[dict[str, Any]]) -> Interval | None:
    found = [
        row
        for row in variant
        if condition(row) == "needle"
        and row["seq_len"] == wanted.seq_len
        and row["item"].partition("/")[0] == wanted.evaluation
    ]
    if not found:
        return None
    if wanted.metric == "accuracy":
        cell = rate(found)
        return Interval(*(100 * cell[name] for name in ("rate", "low", "high")))
    cell = perplexity(found)
    return (
        None
        if cell["perplexity"] is None
        else Interval(cell["perplexity"], cell["low"], cell["high"])
    )


def table(found: Sequence[Outcome], several: bool) -> Table:
    """One line per expected number."""
    lines = [
        [
            f"{x.run}: {x.measurement}" if several else x.measurement,
            x.wanted,
            x.found,
            x.verdict,
            f"{x.expected.what}; {x.expected.source}",
        ]
        for x in found
    ]
    head = ["measurement", "expected", "got [95 % interval]", "verdict", "source"]
    return Table("Expected and measured", head, lines)
