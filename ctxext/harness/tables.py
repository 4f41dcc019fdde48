"""Results and differences as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctxext.harness.compare import Difference
from ctxext.report.table import table_of_texts


def scores(results: Mapping[str, Any], title: str) -> str:
    """A line per task or group and metric, with the columns of the harness's own table.

    Not by `lm_eval.utils.make_table`: that forks processes, which jax's threads do not survive.
    """
    lines = []
    for name, metrics in {**results["results"], **results.get("groups", {})}.items():
        for key, value in sorted(metrics.items()):
            metric, _, filter = key.partition(",")
            if not filter or metric.endswith("_stderr"):
                continue
            better = {True: "up", False: "down"}.get(
                results["higher_is_better"].get(name, {}).get(metric), ""
            )
            lines.append(
                [
                    name,
                    filter,
                    str(results["n-shot"].get(name, "")),
                    metric,
                    better,
                    _number(value),
                    _number(metrics.get(f"{metric}_stderr,{filter}")),
                ]
            )
    header = ["task", "filter", "n-shot", "metric", "better", "value", "stderr"]
    return table_of_texts(title, header, lines).to_text()


def table(differences: Sequence[Difference]) -> str:
    """A line per difference.

    Both values, the difference with its 95 % interval, discordant documents and p-values.
    """
    lines = [
        [
            f"{d.task} {d.metric}" + f", {d.filter}" * (d.filter != "none"),
            str(d.n),
            f"{d.base:.4g}",
            f"{d.model:.4g}",
            f"{d.difference:+.3g}",
            d.unit,
            "" if d.p is None else f"{d.only_base}:{d.only_model}",
            "" if d.adjusted is None else f"{d.adjusted:.2g}",
        ]
        for d in differences
    ]
    header = ["", "n", "base", "model", "difference", "", "only base:only model", "McNemar p, Holm"]
    title = "model minus base on the same documents [95 % paired interval]"
    return table_of_texts(title, header, lines).to_text()


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value in (None, "N/A") else str(value)
