"""What rows say: a verdict in words, numbers with intervals, text tables, and one page of a run or several.

rows -> rows.py (groups) -> compare.py (pairs) -> study.py (one task analysed) -> verdict.py, summary.py, text.py
run directories -> runs.py -> figures.py, heat.py (what is drawn) -> charts.py (SVG) -> page.py (one HTML file)
"""

from collections.abc import Sequence
from pathlib import Path

from ctxext.report.rows import Row, latest
from ctxext.report.summary import summary
from ctxext.report.text import tables
from ctxext.report.verdict import verdict

__all__ = ["Row", "latest", "read_rows", "summary", "tables", "verdict", "write_report"]


def read_rows(runs: Sequence[Path]) -> list[Row]:
    """The rows of run directories; those of several are told apart by the run's name as their checkpoint.

    Raises ValueError for a directory without rows.
    """
    from ctxext.report.runs import read

    return [row for run in read(runs) for row in run.rows]


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained HTML page about run directories, or directories that hold rows.jsonl alone.

    out: by default RUN/report.html for one, ./report.html for several. Raises ValueError for a directory without rows.
    """
    from ctxext.report import page  # the template engine, and jax for frequencies

    return page.write(runs, out or page.default_out(runs))
