"""Charts of the evaluations during training: right answers and held-out loss by step."""

from collections.abc import Mapping, Sequence
from typing import Any

from ctxext.report.drawing.axes import Axis, linear_axis, percent_axis
from ctxext.report.drawing.charts import Chart, Line, Point, legend_of, line_chart
from ctxext.report.pages.styles import method_styles
from ctxext.report.table import Table, table_of_texts

Evaluations = Sequence[tuple[int, Mapping[str, float]]]
"""(step, values by measure such as "passkey@8192")."""
LOSS, MEAN = "loss", "retrieval"


def reach_charts(evaluations: Mapping[str, Evaluations], key: str) -> list[Chart]:
    """The charts of everything that was trained, by its name; none without evaluations."""
    measures = dict.fromkeys(
        name for evaluated in evaluations.values() for _, values in evaluated for name in values
    )
    tasks = {name.partition("@")[0] for name in measures} - {LOSS, MEAN}
    # The mean over tasks says nothing more of a single one.
    left_out = {MEAN} if len(tasks) == 1 else set()
    losses = [name for name in measures if name.startswith(f"{LOSS}@")]
    answers = [
        name for name in measures if name not in losses and name.partition("@")[0] not in left_out
    ]
    charts = []
    if answers:
        lines = _lines(evaluations, answers, scale=100)
        description = (
            "Right answers to the same few questions at every step, in percent. They show where "
            "reach stops growing; the tables above have more questions, and intervals."
        )
        axis = percent_axis("right answers, %")
        charts.append(_chart("Reach during training", description, lines, axis, f"{key}-answers"))
    if losses:
        lines = _lines(evaluations, losses, scale=1)
        description = "Mean nats per token of the same held-out documents at every step."
        values = [point.y for line in lines for point in line.points]
        axis = linear_axis("nats per token", values)
        charts.append(_chart("Held-out loss during training", description, lines, axis, key))
    return charts


def _lines(
    evaluations: Mapping[str, Evaluations], measures: Sequence[str], *, scale: float
) -> list[Line]:
    several = len(evaluations) > 1
    points: dict[str, list[Point]] = {}
    for name, evaluated in evaluations.items():
        for measure in measures:
            task, _, seq_len = measure.partition("@")
            label = f"{task} at {int(seq_len):,}"
            of_measure = [
                Point(step, scale * values[measure])
                for step, values in evaluated
                if measure in values
            ]
            if of_measure:
                points[f"{name}: {label}" if several else label] = of_measure
    styles = method_styles(points)
    return [Line(label, label, styles[label], of_line, "none") for label, of_line in points.items()]


def _chart(title: str, description: str, lines: list[Line], y_axis: Axis, key: str) -> Chart:
    points = [point for line in lines for point in line.points]
    x_axis = linear_axis("step", [0, max(point.x for point in points)], zero=True)
    svg = line_chart(title, description, lines, x_axis, y_axis, key=key)
    rows = [
        [line.name, f"{point.x:,}", f"{point.y:.4g}"] for line in lines for point in line.points
    ]
    numbers: Table[Any] = table_of_texts(title, ["measure", "step", y_axis.title], rows)
    return Chart(title, description, svg, numbers, legend_of(lines))
