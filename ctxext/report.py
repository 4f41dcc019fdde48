"""What rows say: numbers with intervals, and text tables of them. Nothing here but rows is read."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ctxext.evals.stats import Interval, paired_bootstrap, ratio_bootstrap, wilson

Row = dict[str, Any]


def summary(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The tables as data: `retrieval`, `perplexity` and `by_position`, an entry per task, method and length.

    Rates have Wilson intervals, perplexities bootstrap intervals over documents; `low` and `high` are null where one
    document alone gives none. `settings` is equal where the items are the same.
    """
    rows = latest(rows)
    return {
        "retrieval": _cells([row for row in rows if row["eval"] == "passkey"], _rate),
        "perplexity": _cells([row for row in rows if row["eval"] == "ppl"], _perplexity),
        "by_position": _cells([row for row in rows if "by_position" in row], _position),
    }


def tables(rows: Iterable[Row], *, by_depth: bool = False) -> str:
    """Text tables of retrieval, paired differences and perplexity; `by_depth` adds a length x depth grid per method."""
    rows = latest(rows)
    data, parts = summary(rows), []
    for cells in _blocks(data["retrieval"]):
        task = cells[0]["task"]
        mine = [row for row in rows if _settings(row) == cells[0]["settings"]]
        parts += [_by_length(f"{task}: right / asked, % [95 % interval], p(answer)", cells, _rate_text)]
        parts += _differences(mine, task)
        parts += _depth_grids(mine, task) if by_depth else []
    for cells in _blocks(data["perplexity"]):
        title = "perplexity of the same tokens with more context [95 % interval over documents]"
        parts += [_by_length(title, cells, _perplexity_text)]
    parts += [_position_table(cells) for cells in _blocks(data["by_position"])]
    return "\n\n".join(parts) if parts else "no rows"


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row per checkpoint, method and item: the newest, in the place of the first."""
    return list({(*_series(row), row["item"]): row for row in rows}.values())


def _series(row: Row) -> tuple[str, str]:
    return row["checkpoint"], row["method"]


def _settings(row: Row) -> str:
    """What an item shares with all others of its evaluation: rows with different settings are never put together."""
    return row["item"].split("/")[1]


def _cells(rows: Sequence[Row], measure: Callable[[list[Row]], Row]) -> list[Row]:
    """An entry per settings, checkpoint, method and length."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((_settings(row), *_series(row), row["seq_len"]), []).append(row)
    cells = []
    for (settings, checkpoint, method, seq_len), group in groups.items():
        window = group[0]["window"]
        task = {"task": group[0]["task"]["name"]} if "task" in group[0] else {}
        label = {"settings": settings, "checkpoint": checkpoint, "method": method, "seq_len": seq_len}
        cells.append({**task, **label, "window": window, "beyond_window": seq_len > window, **measure(group)})
    return cells


def _blocks(cells: Sequence[Row]) -> list[list[Row]]:
    """The entries of one table each."""
    blocks: dict[str, list[Row]] = {}
    for cell in cells:
        blocks.setdefault(cell["settings"], []).append(cell)
    return list(blocks.values())


def _rate(group: list[Row]) -> Row:
    right = sum(row["correct"] for row in group)
    rate, low, high = wilson(right, len(group))
    probability = sum(row["answer_probability"] for row in group) / len(group)
    nll = sum(row["answer_nll"] for row in group) / len(group)
    return {"correct": right, "n": len(group), "rate": rate, "low": low, "high": high,
            "answer_probability": probability, "answer_nll": nll}  # fmt: skip


def _perplexity(group: list[Row]) -> Row:
    nll, count = [row["nll"] for row in group], [row["count"] for row in group]
    documents = [row["document"] for row in group]
    bounds = [None if x is None else math.exp(x) for x in ratio_bootstrap(nll, count, documents)]
    bits = sum(nll) / math.log(2) / sum(row["bytes"] for row in group)
    return {"perplexity": bounds[0], "low": bounds[1], "high": bounds[2], "bits_per_byte": bits,
            "count": sum(count), "documents": len(set(documents))}  # fmt: skip


def _position(group: list[Row]) -> Row:
    bins = [row["by_position"] for row in group]
    counts = [sum(column) for column in zip(*(b["count"] for b in bins), strict=True)]
    sums = [sum(column) for column in zip(*(b["nll"] for b in bins), strict=True)]
    return {"edges": bins[0]["edges"], "nll": [s / n for s, n in zip(sums, counts, strict=True)], "count": counts}


# Text ----------------------------------------------------------------------------------------------------------------


def _by_length(title: str, cells: Sequence[Row], text: Callable[[Row], str]) -> str:
    """One line per method, one column per length; lengths beyond the window carry a star."""
    lengths = sorted({cell["seq_len"] for cell in cells})
    beyond = {cell["seq_len"] for cell in cells if cell["beyond_window"]}
    names = _names(cells)
    found = {(*_series(cell), cell["seq_len"]): text(cell) for cell in cells}
    lines = [[name, *(found.get((*series, n), "-") for n in lengths)] for series, name in names.items()]
    windows = sorted({cell["window"] for cell in cells if cell["beyond_window"]})
    note = f"\n* longer than the window of pre-training ({', '.join(map(str, windows))} tokens)" if windows else ""
    return _grid(title, ["", *(f"{n}{'*' * (n in beyond)}" for n in lengths)], lines) + note


def _differences(rows: Sequence[Row], task: str) -> list[str]:
    """Percentage points against the first method on the items that both have, clusters = haystack documents."""
    by_series: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_series.setdefault(_series(row), {})[row["item"]] = row
    base = next(iter(by_series.values()))
    pairs: dict[tuple[tuple[str, str], int], list[tuple[Row, Row]]] = {}
    for series, items in list(by_series.items())[1:]:
        for item, row in items.items():
            # With another tokenizer the same item is another prompt, and no pair.
            if item in base and base[item]["prompt_sha256"] == row["prompt_sha256"]:
                pairs.setdefault((series, row["seq_len"]), []).append((base[item], row))
    cells = []
    for group in pairs.values():
        a, b = ([100 * row["correct"] for row in side] for side in zip(*group, strict=True))
        documents = [row["haystack"][0][0] if row["haystack"] else None for row, _ in group]
        cells.append({**group[0][1], "beyond_window": False, "interval": _paired(a, b, documents)})
    title = f"{task}: difference to {_names(rows)[_series(rows[0])]}, percentage points [95 % paired interval]"
    return [_by_length(title, cells, lambda c: _points(c["interval"]))] if cells else []


def _paired(a: list[float], b: list[float], documents: list[Any]) -> Interval:
    if a == b:  # a bootstrap of equal pairs would be certain; what n agreeing pairs leave open is 0 of n
        most = 100 * (wilson(0, len(a)).high or 0)
        return Interval(0.0, -most, most)
    return paired_bootstrap(a, b, documents)


def _depth_grids(rows: Sequence[Row], task: str) -> list[str]:
    """k/n by depth and length, a grid for each method."""
    grids = []
    for series, name in _names(rows).items():
        cells: dict[tuple[float, int], list[bool]] = {}
        for row in rows:
            if _series(row) == series:
                cells.setdefault((row["depth"], row["seq_len"]), []).append(row["correct"])
        depths, lengths = sorted({d for d, _ in cells}), sorted({n for _, n in cells})
        lines = [
            [f"{d:g}", *(f"{sum(cells[d, n])}/{len(cells[d, n])}" if (d, n) in cells else "-" for n in lengths)]
            for d in depths
        ]
        grids.append(_grid(f"{task}, {name}: right / asked by depth, 0 is first", ["", *map(str, lengths)], lines))
    return grids


def _position_table(cells: Sequence[Row]) -> str:
    """Nats per token by the number of tokens seen before."""
    edges, names = cells[0]["edges"], _names(cells)
    header = ["tokens seen", *(f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False))]
    lines = [[names[_series(cell)], *(f"{x:.2f}" for x in cell["nll"])] for cell in cells]
    return _grid(f"nats per token by position at length {cells[0]['seq_len']}", header, lines)


def _names(cells: Iterable[Row]) -> dict[tuple[str, str], str]:
    """A name per (checkpoint, method), with the checkpoint only where there are several."""
    series = list(dict.fromkeys(map(_series, cells)))
    several = len({checkpoint for checkpoint, _ in series}) > 1
    return {(c, m): f"{m} ({c})" if several and c else m for c, m in series}


def _rate_text(cell: Row) -> str:
    return (f"{cell['correct']}/{cell['n']} {100 * cell['rate']:.0f} [{100 * cell['low']:.0f}, "
            f"{100 * cell['high']:.0f}] p {cell['answer_probability']:.2f}")  # fmt: skip


def _perplexity_text(cell: Row) -> str:
    bounds = "" if cell["low"] is None else f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    return f"{cell['perplexity']:.2f}{bounds}"


def _points(interval: Interval) -> str:
    bounds = "" if interval.low is None else f" [{interval.low:+.0f}, {interval.high:+.0f}]"
    return f"{interval.value:+.0f}{bounds}"


def _grid(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    text = [
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, widths, strict=True)))
        for line in [header, *lines]
    ]
    return "\n".join([title, *(line.rstrip() for line in text)])
