"""The verdict and the result tables as data."""

from collections.abc import Iterable
from typing import Any

from ctxext.evals.record import EvalRecord
from ctxext.report.analysis.results import Results
from ctxext.report.pages.tables import KINDS_OF_TABLES, all_tables
from ctxext.report.pages.verdict import findings


def summary(records: Iterable[EvalRecord]) -> dict[str, Any]:
    """`verdict` in sentences, then the results of each kind of table, one entry per cell.

    Rates have Wilson intervals, their differences score intervals, means t intervals over
    documents; `low` and `high` are null where a single document gives none. Entries with equal
    `settings` have the same items. Effective contexts are in tokens, scores, choices and `chance`
    in percent, gains and `nats` in nats per token, mistakes in answers.
    """
    results = Results(records)
    data: dict[str, Any] = {"verdict": [finding.sentence for finding in findings(results)]}
    data |= {kind: [] for kind in KINDS_OF_TABLES}
    for table in all_tables(results):
        if table.key:
            data[table.key] += table.to_json()
    return data
