"""The result tables as text."""

from collections.abc import Iterable

from ctxext.evals.record import EvalRecord
from ctxext.report.analysis.results import Results
from ctxext.report.pages.tables import all_tables


def tables(records: Iterable[EvalRecord]) -> str:
    """Every result table as text."""
    return "\n\n".join(table.to_text() for table in all_tables(Results(records))) or "no records"
