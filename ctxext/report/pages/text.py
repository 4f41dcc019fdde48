"""Text tables of rows: answers with intervals, differences, controls, mistakes, achieved lengths, perplexity."""

from collections.abc import Iterable, Sequence

from ctxext.report.analysis import controls, lengths, mistakes, suites
from ctxext.report.analysis.comparisons import paired, pairs
from ctxext.report.analysis.context_gain import UNIT, gains
from ctxext.report.analysis.losses import (
    by_estimator,
    estimator,
    is_perplexity,
    perplexity,
    position,
)
from ctxext.report.analysis.measures import BESIDE, CHOICE, chance, measured
from ctxext.report.analysis.overview import overview
from ctxext.report.analysis.records import (
    Question,
    Row,
    cells,
    group,
    latest,
    names,
    questions,
    rate,
    series,
    settings,
)
from ctxext.report.analysis.study import Study
from ctxext.report.pages.tables import NOT_ASKED, between, by_length, grid, points


def tables(rows: Iterable[Row], *, by_depth: bool = False) -> str:
    """Text tables of retrieval, paired differences and perplexity; `by_depth` adds a length x depth grid per method."""
    rows = latest(rows)
    parts, asked = [], questions(rows)
    for question in asked:
        title = f"{question.name}: right / asked, % [95 % interval], p(answer)"
        parts += [by_length(title, cells(question.rows, rate), controls.rate_text)]
        parts += _differences(question)
        parts += [
            controls.text(Study(question)),
            *_measures(question),
            *_gain(question),
            *mistakes.text(question),
        ]
        parts += lengths.text(question)
        parts += _depth_grids(question) if by_depth and question.has_depth else []
    parts += suites.text(rows)
    for found in group(filter(is_perplexity, rows), settings).values():
        title = f"{estimator(found[0])} [95 % interval over documents]"
        parts += [by_length(title, cells(found, perplexity), _perplexity_text)]
    for found in group([row for row in rows if "by_position" in row], settings).values():
        parts += [_position_table(cells(found, position), by_estimator(found[0]))]
    parts += overview(asked)
    return "\n\n".join(parts) if parts else "no rows"


def _differences(question: Question) -> list[str]:
    """Percentage points against the first method on the items that both have."""
    first, *others = question.variants
    found = []
    for variant in others:
        for n, both in group(
            pairs(question.of(first), question.of(variant)), lambda pair: pair[1]["seq_len"]
        ).items():
            found.append(
                {**both[0][1], "seq_len": n, "beyond_window": False, "interval": paired(both)}
            )
    title = f"{question.name}: difference to {first.name}, percentage points [95 % paired interval]"
    return [by_length(title, found, lambda cell: points(cell["interval"]))] if found else []


def _measures(question: Question) -> list[str]:
    """What the rows say beside right and wrong: mean score, choice, likelihood."""
    parts = []
    for measure in BESIDE:
        found = [cell for cell in measured(question, measure) if "condition" not in cell]
        if found:
            level = chance(question.rows) if measure is CHOICE else None
            level = "" if level is None else f", chance {level:.3g}"
            title = f"{question.name}: {measure.title}{level} [95 % interval]"
            parts.append(
                by_length(
                    title, found, lambda cell, form=measure.form: between(cell["interval"], form)
                )
            )
    return parts


def _gain(question: Question) -> list[str]:
    """How much less surprising the answer is with the needle in the text."""
    title = f"{question.name}: context gain, {UNIT} [95 % interval over documents]"
    found = [cell for cells in gains(question).values() for cell in cells]
    if not found:
        return [f"{title}: {NOT_ASKED} (it takes the same questions with the needle and without)"]
    if silent := len(question.variants) - len(gains(question)):
        title += f"; {silent} other variant{'s' * (silent != 1)} not asked without the needle"
    return [
        by_length(title, found, lambda cell: f"{between(cell['interval'], '.2f')} of {cell['n']}")
    ]


def _depth_grids(question: Question) -> list[str]:
    """k/n by depth and length, a grid for each method."""
    grids = []
    for variant in question.variants:
        found = group(question.of(variant), lambda row: (row["depth"], row["seq_len"]))
        texts = {
            key: f"{sum(row['correct'] for row in rows)}/{len(rows)}" for key, rows in found.items()
        }
        depths, lengths = sorted({d for d, _ in found}), sorted({n for _, n in found})
        lines = [[f"{d:g}", *(texts.get((d, n), "-") for n in lengths)] for d in depths]
        title = f"{question.name}, {variant.name}: right / asked by depth, 0 is first"
        grids.append(grid(title, ["", *map(str, lengths)], lines))
    return grids


def _position_table(found: Sequence[Row], which: str) -> str:
    """Nats per token by the number of tokens seen before."""
    edges, called = found[0]["edges"], names(found)
    header = [
        "tokens seen",
        *(f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False)),
    ]
    lines = [[called[series(cell)], *(f"{x:.2f}" for x in cell["nll"])] for cell in found]
    return grid(f"nats per token by position at length {found[0]['seq_len']}{which}", header, lines)


def _perplexity_text(cell: Row) -> str:
    if cell["perplexity"] is None:
        return "no key tokens"
    bounds = "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['perplexity']:.2f}{bounds}"
