"""Evaluation records to a verdict in words, tables with intervals, and one page about runs.

Three packages, one after the other:

analysis/  records -> groups -> numbers with intervals (`results.Results` holds all of them)
drawing/   SVG charts, heatmaps and colours, which know nothing of evaluations
pages/     results in words: tables (`tables.all_tables`), verdict, charts of results, and the page

`table.Table` is the one form of a table; text, HTML and JSON are renderings of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctxext.evals.record import EvalRecord
from ctxext.report.analysis.directories import is_unfinished, run_directories
from ctxext.report.analysis.records import latest
from ctxext.report.pages.summary import summary
from ctxext.report.pages.text import tables
from ctxext.report.pages.verdict import verdict
from ctxext.rope import RopeBase, RopeScaling
from ctxext.rundir import SETTINGS, RunDir

if TYPE_CHECKING:
    import numpy as np

    from ctxext.report.drawing.charts import Chart
    from ctxext.report.drawing.notebook import Drawing

__all__ = [
    "choose_runs",
    "draw_wavelengths",
    "drawings",
    "expectations",
    "expectations_data",
    "heatmaps",
    "is_unfinished",
    "latest",
    "left_out",
    "plot_wavelengths",
    "provenance",
    "read_records",
    "repeated_seeds",
    "run_directories",
    "seeds_data",
    "seeds_text",
    "summary",
    "tables",
    "verdict",
    "write_report",
]


def choose_runs(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """(those of the paths that are runs, lines that say which others are left out)."""
    from ctxext.report.analysis import runs

    return runs.choose_runs(paths)


def repeated_seeds(runs: Sequence[Path]) -> list[str]:
    """A sentence for the runs that are not pooled, as two of them have the same seed."""
    from ctxext.report.analysis import pooling
    from ctxext.report.analysis.run_files import read_object

    return pooling.repeated_seeds(
        {str(path): read_object(RunDir(path).config_file, SETTINGS) for path in runs}
    )


def read_records(runs: Sequence[Path]) -> list[EvalRecord]:
    """The records of run directories; of several, each names its run as the checkpoint.

    Raises ValueError for a directory without records.
    """
    from ctxext.report.analysis.runs import read_runs

    return [record for run in read_runs(runs) for record in run.records]


def expectations(runs: Sequence[Path]) -> list[str]:
    """A sentence per published number that the experiments of run directories expect.

    Raises ValueError for a directory without records.
    """
    from ctxext.report.analysis.published import outcomes
    from ctxext.report.analysis.runs import read_runs
    from ctxext.report.pages.expected import outcome_text

    return [outcome_text(outcome) for run in read_runs(runs) for outcome in outcomes(run)]


def expectations_data(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The same as data."""
    from ctxext.report.analysis.published import outcomes
    from ctxext.report.analysis.runs import read_runs

    return [outcome.to_json() for run in read_runs(runs) for outcome in outcomes(run)]


def left_out(run: Path) -> str:
    """A sentence on what the budget of a run left out of its evaluations; "" for nothing."""
    from ctxext.report.analysis.run_files import BUDGET, read_object
    from ctxext.report.pages import budget

    return budget.left_out(read_object(RunDir(run).budget_file, BUDGET))


def plot_wavelengths(
    methods: Sequence[RopeScaling], base: RopeBase, *, seq_len: int, target: int, out: Path
) -> Path:
    """Draw the wavelengths of methods at `seq_len` tokens, against the window and a target length.

    out: FILE.svg or FILE.html. Raises ValueError for another ending.
    """
    from ctxext.report.pages import page

    return page.write_chart(_wavelengths(methods, base, seq_len, target), out)


def draw_wavelengths(
    methods: Sequence[RopeScaling], base: RopeBase, *, seq_len: int, target: int
) -> "Drawing":
    """The chart of `plot_wavelengths`, for a notebook."""
    from ctxext.report.drawing.notebook import Drawing

    return Drawing(_wavelengths(methods, base, seq_len, target))


def _wavelengths(
    methods: Sequence[RopeScaling], base: RopeBase, seq_len: int, target: int
) -> "Chart":
    from ctxext.report.analysis.wavelengths import spectrum
    from ctxext.report.pages.styles import method_styles
    from ctxext.report.pages.wavelength_chart import wavelength_chart

    spectra = [spectrum(method, base, seq_len) for method in methods]
    return wavelength_chart(
        spectra, method_styles(s.method for s in spectra), "waves", target=target
    )


def drawings(runs: Sequence[Path]) -> "dict[str, Drawing]":
    """Every chart of the page about these directories, by its title, for a notebook.

    Raises ValueError for a directory without records.
    """
    from ctxext.report.drawing.notebook import Drawing
    from ctxext.report.pages import page

    charts = [chart for section in page.page_sections(runs) for chart in section.charts]
    return {chart.title: Drawing(chart) for chart in charts}


def heatmaps(records: Sequence[EvalRecord]) -> "dict[str, np.ndarray]":
    """Length x depth of every variant and task, as pixels [height, width, 3] by "task/variant"."""
    from ctxext.report.analysis.results import Results
    from ctxext.report.drawing.raster import draw
    from ctxext.report.pages.heatmaps import by_depth

    studies = [study for study in Results(records).studies if study.task.has_depth]
    return {
        f"{study.task.name}/{variant.name}": draw(by_depth(study, variant))
        for study in studies
        for variant in study.task.variants
    }


def provenance(run: RunDir, steps: int) -> dict[str, str]:
    """Where the weights of a run after `steps` come from: "base model", "data", "command" ..."""
    from ctxext.report.pages.provenance import origin

    return origin(run, steps)


def seeds_text(runs: Sequence[Path], *, plot: Path | None = None) -> str:
    """Tables of runs that differ only in their training seed; the first task is drawn into `plot`.

    plot: FILE.svg or FILE.html. Raises ValueError for runs that cannot be combined.
    """
    from ctxext.report.analysis.seeds import across_seeds
    from ctxext.report.pages import page
    from ctxext.report.pages.seeds import seed_chart, seed_tables

    results = across_seeds(runs)
    if plot and results:
        page.write_chart(seed_chart(results[0]), plot)
    return "\n\n".join(table.to_text() for task in results for table in seed_tables(task))


def seeds_data(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The results of runs that differ only in their training seed, as data."""
    from ctxext.report.analysis.seeds import across_seeds

    return [task.to_json() for task in across_seeds(runs)]


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page about run directories.

    runs: a directory that only has a records.jsonl will do. out: by default RUN/report.html for
    one; for several report.html in the directory that they are in, or here if they are in several.
    Raises ValueError for a directory without records.
    """
    from ctxext.report.pages import page  # loads the template engine, and jax for frequencies

    return page.write(runs, out or page.default_out(runs))
