"""Text tables of rows: retrieval with intervals, paired differences, controls, perplexity."""

from collections.abc import Callable, Iterable, Sequence

from ctxext.evals.stats import Interval
from ctxext.report.compare import paired, pairs
from ctxext.report.rows import (
    Question,
    Row,
    by_estimator,
    cells,
    estimator,
    group,
    is_perplexity,
    latest,
    names,
    perplexity,
    position,
    questions,
    rate,
    series,
    settings,
)


def tables(rows: Iterable[Row], *, by_depth: bool = False) -> str:
    """Text tables of retrieval, paired differences and perplexity; `by_depth` adds a length x depth grid per method."""
    rows = latest(rows)
    parts = []
    for question in questions(rows):
        title = f"{question.task}: right / asked, % [95 % interval], p(answer)"
        parts += [_by_length(title, cells(question.rows, rate), _rate_text)]
        parts += _differences(question)
        parts += _controls(question)
        parts += _depth_grids(question) if by_depth else []
    for found in group(filter(is_perplexity, rows), settings).values():
        title = f"{estimator(found[0])} [95 % interval over documents]"
        parts += [_by_length(title, cells(found, perplexity), _perplexity_text)]
    for found in group([row for row in rows if "by_position" in row], settings).values():
        parts += [_position_table(cells(found, position), by_estimator(found[0]))]
    return "\n\n".join(parts) if parts else "no rows"


def _by_length(title: str, found: Sequence[Row], text: Callable[[Row], str]) -> str:
    """One line per method, one column per length; lengths beyond the window carry a star."""
    lengths = sorted({cell["seq_len"] for cell in found})
    beyond = {cell["seq_len"] for cell in found if cell["beyond_window"]}
    texts = {(series(cell), cell["seq_len"]): text(cell) for cell in found}
    lines = [[name, *(texts.get((key, n), "-") for n in lengths)] for key, name in names(found).items()]
    windows = sorted({cell["window"] for cell in found if cell["beyond_window"]})
    note = f"\n* longer than the window of pre-training ({', '.join(map(str, windows))} tokens)" if windows else ""
    return grid(title, ["", *(f"{n}{'*' * (n in beyond)}" for n in lengths)], lines) + note


def _differences(question: Question) -> list[str]:
    """Percentage points against the first method on the items that both have."""
    first, *others = question.arms
    found = []
    for arm in others:
        for n, both in group(pairs(question.of(first), question.of(arm)), lambda pair: pair[1]["seq_len"]).items():
            found.append({**both[0][1], "seq_len": n, "beyond_window": False, "interval": paired(both)})
    title = f"{question.task}: difference to {first.name}, percentage points [95 % paired interval]"
    return [_by_length(title, found, lambda cell: points(cell["interval"]))] if found else []


def _controls(question: Question) -> list[str]:
    """The floor (no needle) and the ceiling (the needle alone)."""
    return [
        _by_length(f"{question.task}, {kind}: right / asked, % [95 % interval], p(answer)",
                   cells([row for row in question.controls if row["condition"] == kind], rate), _rate_text)
        for kind in dict.fromkeys(row["condition"] for row in question.controls)
    ]  # fmt: skip


def _depth_grids(question: Question) -> list[str]:
    """k/n by depth and length, a grid for each method."""
    grids = []
    for arm in question.arms:
        found = group(question.of(arm), lambda row: (row["depth"], row["seq_len"]))
        texts = {key: f"{sum(row['correct'] for row in rows)}/{len(rows)}" for key, rows in found.items()}
        depths, lengths = sorted({d for d, _ in found}), sorted({n for _, n in found})
        lines = [[f"{d:g}", *(texts.get((d, n), "-") for n in lengths)] for d in depths]
        title = f"{question.task}, {arm.name}: right / asked by depth, 0 is first"
        grids.append(grid(title, ["", *map(str, lengths)], lines))
    return grids


def _position_table(found: Sequence[Row], which: str) -> str:
    """Nats per token by the number of tokens seen before."""
    edges, called = found[0]["edges"], names(found)
    header = ["tokens seen", *(f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False))]
    lines = [[called[series(cell)], *(f"{x:.2f}" for x in cell["nll"])] for cell in found]
    return grid(f"nats per token by position at length {found[0]['seq_len']}{which}", header, lines)


def _rate_text(cell: Row) -> str:
    return (f"{cell['correct']}/{cell['n']} {100 * cell['rate']:.0f} [{100 * cell['low']:.0f}, "
            f"{100 * cell['high']:.0f}] p {cell['answer_probability']:.2f}")  # fmt: skip


def _perplexity_text(cell: Row) -> str:
    if cell["perplexity"] is None:
        return "no key tokens"
    bounds = "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['perplexity']:.2f}{bounds}"


def points(interval: Interval) -> str:
    """Percentage points with their bounds."""
    bounds = "" if interval.low is None else f" [{interval.low:+.0f}, {interval.high:+.0f}]"
    return f"{interval.value:+.0f}{bounds}"


def grid(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    text = [
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in [header, *lines]
    ]
    return "\n".join([title, *(line.rstrip() for line in text)])
