"""Context gain: how much less surprised a model is by the right answer when the text holds it."""

from collections.abc import Callable
from typing import Any

from ctxext.evals.stats import Interval, ratio_bootstrap
from ctxext.report.analysis.records import Question, Row, document, group, series

UNIT = "nats per token"


def gains(
    question: Question, key: Callable[[Row], Any] = lambda row: row["seq_len"]
) -> dict[Any, list[Row]]:
    """Per variant, and per `key` of the question (its length): entries with `interval`, `n` and the fields of a cell.

    gain = mean of nll(answer | no needle) - nll(answer | needle) over questions asked both ways of the same variant, nats
    per token, with a bootstrap over documents.
    """
    proper = {(series(row), row["item"]): row for row in question.rows}
    found: list[tuple[Row, float]] = []
    for row in question.controls:
        other = proper.get((series(row), row["item"].replace("-no-needle/", "/", 1)))
        if row["condition"] == "no-needle" and other:
            found.append((other, row["answer_nll"] - other["answer_nll"]))
    by_arm = group(found, lambda pair: series(pair[0]))
    return {
        variant.series: [
            _entry(part)
            for part in group(by_arm[variant.series], lambda pair: key(pair[0])).values()
        ]
        for variant in question.variants
        if variant.series in by_arm
    }


def _entry(found: list[tuple[Row, float]]) -> Row:
    first = found[0][0]
    interval: Interval = ratio_bootstrap(
        [x for _, x in found], [1] * len(found), [document(row) for row, _ in found]
    )
    named = {key: first[key] for key in ("checkpoint", "method", "seq_len", "depth", "window")}
    beyond = first["seq_len"] > first["window"]
    return {**named, "beyond_window": beyond, "n": len(found), "interval": interval}
