"""Curves of the evaluations during training, on the page."""

import json
from pathlib import Path

import pytest

from ctxext.report.analysis.run_files import measured, read_metrics
from ctxext.report.pages.reach_charts import reach_charts

ROWS = [
    {
        "step": step,
        "eval/passkey@512": right,
        "eval/retrieval@512": right,
        "eval/loss@512": loss,
        "eval_seconds": 1.0,
    }
    for step, right, loss in ((0, 0.0, 3.5), (20, 0.5, 3.25), (40, 0.9, 3.0))
]
TRAINING = {"step": 20, "loss": 2.0, "learning_rate": 1e-3}


def written(directory: Path, rows: list[dict]) -> Path:
    file = directory / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def cells(chart) -> list[list[str]]:
    return [[column.text(row) for column in chart.numbers.columns] for row in chart.numbers.rows]


def test_the_curves_are_those_of_the_metrics_by_measure(tmp_path):
    rows = read_metrics(written(tmp_path, [TRAINING, *ROWS]))
    evaluated = [(row["step"], measured(row)) for row in rows if measured(row)]
    assert len(evaluated) == 3
    answers, losses = reach_charts({"yarn": evaluated}, "reach")
    assert cells(answers) == [
        ["passkey at 512", "0", "0"],
        ["passkey at 512", "20", "50"],
        ["passkey at 512", "40", "90"],
    ]
    assert [row[2] for row in cells(losses)] == ["3.5", "3.25", "3"]
    assert answers.svg.count("passkey at 512") >= 1
    both, _ = reach_charts({"yarn": evaluated, "pi": evaluated}, "reach")
    assert {row[0] for row in cells(both)} == {"yarn: passkey at 512", "pi: passkey at 512"}
    assert not reach_charts({}, "reach")


def test_the_mean_is_drawn_where_there_are_several_tasks():
    values = {"passkey@512": 1.0, "kv@512": 0.5, "retrieval@512": 0.75}
    (chart,) = reach_charts({"yarn": [(20, values)]}, "reach")
    assert [row[0] for row in cells(chart)] == [
        f"{n} at 512" for n in ("passkey", "kv", "retrieval")
    ]


@pytest.mark.parametrize("value", ["x", None, [1]])
def test_a_damaged_value_is_one_named_error(tmp_path, value):
    file = written(tmp_path, [TRAINING, {"step": 20, "eval/passkey@512": value}])
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, is damaged: it.passkey@512 must"):
        read_metrics(file)
