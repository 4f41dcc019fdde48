"""The tables as data."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from ctxext.report.analysis import effective_context, lengths, mistakes, suites
from ctxext.report.analysis.context_gain import gains
from ctxext.report.analysis.losses import is_perplexity, perplexity, position
from ctxext.report.analysis.measures import marks
from ctxext.report.analysis.records import Row, asks, cells, condition, latest, questions
from ctxext.report.analysis.study import Study
from ctxext.report.pages.verdict import findings


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """`verdict` in sentences, then entries per cell: effective, other_bars, retrieval, controls, gain, mistakes, ...

    Rates have Wilson intervals, all else bootstrap intervals over documents; `low` and `high` are null where one
    document alone gives none. `settings` is equal where the items are the same. Effective contexts are in tokens;
    scores, choices and `chance` in percent, gains and `nats` in nats per token, mistakes in answers.
    """
    rows = latest(rows)
    asked = [row for row in rows if asks(row)]
    studies = [Study(question) for question in questions(rows)]
    return {
        "verdict": [finding.text for finding in findings(rows, studies)],
        "effective": [entry for study in studies for entry in _effective(study)],
        "other_bars": [entry for study in studies for entry in _other_bars(study)],
        "retrieval": cells([row for row in asked if condition(row) == "needle"], marks),
        "controls": cells([row for row in asked if condition(row) != "needle"], marks),
        "gain": [entry for study in studies for entry in _gain(study)],
        "mistakes": [
            cell
            for study in studies
            if mistakes.known(study.question)
            for cell in cells(study.question.rows, mistakes.kinds)
        ],
        "sizes": [entry for study in studies for entry in _sizes(study)],
        "suites": [
            {**mean._asdict(), "percent": mean.percent._asdict()} for mean in suites.means(rows)
        ],
        "perplexity": cells(list(filter(is_perplexity, rows)), perplexity),
        "by_position": cells([row for row in rows if "by_position" in row], position),
    }


def _of(study: Study) -> Row:
    return {"task": study.question.task, "settings": study.question.settings}


def _effective(study: Study) -> list[Row]:
    return [
        {
            **_of(study),
            "checkpoint": variant.series[0],
            "method": variant.series[1],
            "window": variant.window,
            **far._asdict(),
        }
        for variant, far in study.reaches.items()
    ]


def _other_bars(study: Study) -> list[Row]:
    named = {
        variant: {**_of(study), "checkpoint": variant.series[0], "method": variant.series[1]}
        for variant in study.reaches
    }
    found = [
        {**said, "tau": tau, **far._asdict()}
        for variant, said in named.items()
        for tau in effective_context.TAUS
        if (far := study.effective(variant, tau))
    ]
    return found + [
        {**said, "rule": "nolima", "value": effective_context.nolima(study, variant)}
        for variant, said in named.items()
    ]


def _gain(study: Study) -> list[Row]:
    keys = ("checkpoint", "method", "seq_len", "n")
    return [
        {**_of(study), **{key: cell[key] for key in keys}, **cell["interval"]._asdict()}
        for found in gains(study.question).values()
        for cell in found
    ]


def _sizes(study: Study) -> list[Row]:
    def three(found: list[Row], name: str) -> list[float]:
        values = [row[name] for row in found]
        return [min(values), median(values), max(values)]

    return [
        {
            **_of(study),
            "seq_len": n,
            "prompts": len(found),
            "tokens": three(found, "tokens"),
            "depth": three(found, "depth_achieved"),
        }
        for n, found in lengths.prompts(study.question).items()
    ]
