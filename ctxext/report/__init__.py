"""What rows say: a verdict in words, numbers with intervals, text tables, and one page of a run or several.

rows -> rows.py (groups) -> compare.py (pairs) -> study.py (one task analysed) -> verdict.py, summary.py, text.py
a part of an analysis each: measures.py, gain.py, controls.py, mistakes.py, sizes.py, reach.py, suites.py
run directories -> runs.py -> figures.py, answers.py, waves.py, heat.py, published.py (by charts.py, bars.py) -> page.py
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.report.analysis.flat_records import flat_rows
from ctxext.report.analysis.records import Row, latest
from ctxext.report.pages import summary as _summary
from ctxext.report.pages import text as _text
from ctxext.report.pages import verdict as _verdict
from ctxext.rope import RopeBase, RopeScaling

if TYPE_CHECKING:
    import numpy as np

    from ctxext.report.analysis.published import Outcome
    from ctxext.report.analysis.seeds import Seeds
    from ctxext.report.drawing.charts import Chart
    from ctxext.report.drawing.notebook import Drawing

__all__ = [
    "Row",
    "across_seeds",
    "draw_wavelengths",
    "drawings",
    "expectations",
    "heatmaps",
    "latest",
    "plot_wavelengths",
    "read_rows",
    "summary",
    "tables",
    "verdict",
    "write_report",
]


def summary(records: Iterable[Any]) -> dict[str, Any]:
    """Tables and verdict as data, see `pages.summary.summary`."""
    return _summary.summary(flat_rows(records))


def tables(records: Iterable[Any], *, by_depth: bool = False) -> str:
    """Tables as text, see `pages.text.tables`."""
    return _text.tables(flat_rows(records), by_depth=by_depth)


def verdict(records: Iterable[Any]) -> list[str]:
    """The verdict in sentences, see `pages.verdict.verdict`."""
    return _verdict.verdict(flat_rows(records))


def read_rows(runs: Sequence[Path]) -> list[Row]:
    """The rows of run directories; those of several are told apart by the run's name as their checkpoint.

    Raises ValueError for a directory without rows.
    """
    from ctxext.report.analysis.runs import read

    return [row for run in read(runs) for row in run.rows]


def expectations(runs: Sequence[Path]) -> "list[Outcome]":
    """The published numbers that the experiments of run directories expect, beside what was measured.

    Raises ValueError for a directory without rows.
    """
    from ctxext.report.analysis.published import outcomes
    from ctxext.report.analysis.runs import read

    return [outcome for run in read(runs) for outcome in outcomes(run)]


def plot_wavelengths(
    methods: Sequence[RopeScaling], base: RopeBase, seq_len: int, target: int, out: Path
) -> Path:
    """Draw the wavelengths at `seq_len` tokens of `methods` over `base` against the window and `target` tokens.

    out: FILE.svg or FILE.html. Raises ValueError for another ending.
    """
    from ctxext.report.pages import page

    return page.write_chart(_wavelengths(methods, base, seq_len, target), out)


def draw_wavelengths(
    methods: Sequence[RopeScaling], base: RopeBase, seq_len: int, target: int
) -> "Drawing":
    """The chart of `plot_wavelengths`, for a notebook."""
    from ctxext.report.drawing.notebook import Drawing

    return Drawing(_wavelengths(methods, base, seq_len, target))


def _wavelengths(
    methods: Sequence[RopeScaling], base: RopeBase, seq_len: int, target: int
) -> "Chart":
    from ctxext.report.analysis.wavelengths import spectrum, wavelengths
    from ctxext.report.drawing.appearance import method_styles

    spectra = [spectrum(method, base, seq_len) for method in methods]
    return wavelengths(spectra, method_styles(s.method for s in spectra), "waves", target=target)


def drawings(runs: Sequence[Path]) -> "dict[str, Drawing]":
    """Every chart that the page of these directories has, by its title, for a notebook.

    Raises ValueError for a directory without rows.
    """
    from ctxext.report.drawing.notebook import Drawing
    from ctxext.report.pages import page

    return {
        chart.title: Drawing(chart) for part in page.page_sections(runs) for chart in part.charts
    }


def heatmaps(records: Sequence[Any]) -> "dict[str, np.ndarray]":
    """Length x depth of every variant and question, as pixels [height, width, 3] by "question/variant"."""
    from ctxext.report.analysis.records import questions
    from ctxext.report.analysis.study import Study
    from ctxext.report.drawing.heatmap import by_depth
    from ctxext.report.drawing.raster import draw

    studies = [Study(question) for question in questions(flat_rows(records)) if question.has_depth]
    return {
        f"{study.question.name}/{variant.name}": draw(by_depth(study, variant))
        for study in studies
        for variant in study.question.variants
    }


def across_seeds(runs: Sequence[Path], plot: Path | None = None) -> "list[Seeds]":
    """Runs that differ in their training seed, put together: tables, and a drawing of the first task in `plot`.

    plot: FILE.svg or FILE.html. Raises ValueError for runs that cannot be put together.
    """
    from ctxext.report.analysis.seeds import across_seeds as join
    from ctxext.report.pages import page

    found = join(runs)
    if plot and found:
        page.write_chart(found[0].chart, plot)
    return found


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page about run directories, or directories that hold records.jsonl alone.

    out: by default RUN/report.html for one, ./report.html for several. Raises ValueError for a directory without rows.
    """
    from ctxext.report.pages import page  # the template engine, and jax for frequencies

    return page.write(runs, out or page.default_out(runs))
