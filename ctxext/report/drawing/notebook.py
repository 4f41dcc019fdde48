"""Charts for notebooks: an object that Jupyter shows as its picture."""

from dataclasses import dataclass
from pathlib import Path

from ctxext.report.drawing.charts import Chart
from ctxext.report.drawing.svg import standalone

STYLE = (Path(__file__).parent / "chart.css").read_text() + "svg { max-width: 640px; }\n"


@dataclass(frozen=True)
class Drawing:
    """A chart that a notebook shows at the end of a cell; `chart.numbers` has it as a table."""

    chart: Chart

    def _repr_svg_(self) -> str:
        return standalone(self.chart.svg, STYLE)

    def __repr__(self) -> str:
        return f"{self.chart.title}. {self.chart.description}"
