"""Figures of a bench to read, and drawn against the length."""

from pathlib import Path
from typing import Any

from ctxext.report.drawing.axes import length_axis, linear_axis
from ctxext.report.drawing.charts import Chart, Line, Point, legend_of, line_chart
from ctxext.report.drawing.svg import Style
from ctxext.report.pages.page import write_chart
from ctxext.report.table import table_of_texts

NAMES = {"ours": "ctxext", "theirs": "transformers"}


def describe(figures: dict[str, Any]) -> str:
    """The figures as lines to read."""
    lines = []
    for part, found in figures.items():
        if part == "eval":
            lines += [
                f"eval, {name}: {x['items']:,} items in {x['seconds']:.1f} s, {x['items_per_second']:.1f} "
                f"items/s; {x['outside']:.1%} of the time outside the model, {x['padding']:.1%} on padding"
                for name, x in found.items()
            ]
        elif part == "io":
            lines.append(
                f"io: {found['bytes'] / 1e9:.2f} GB converted in {found['convert']['seconds']:.2f} s, copied "
                f"in {found['copy']['seconds']:.2f} s; {_spread(found['ratio'])} of copying's speed"
            )
        else:
            lines += [line for one in found["matches"] for line in _match(one)]
    return "\n".join(lines)


def _match(found: dict[str, Any]) -> list[str]:
    sides = found["sides"]
    out = [found["work"]]
    for name, side in sides.items():
        seconds = side["seconds"]
        share = f", {side['roofline']:.0%} of the memory roofline" if "roofline" in side else ""
        share += f", MFU {side['mfu']:.1%}" if "mfu" in side else ""
        if "device_seconds" in side:
            share += f", the device busy for {side['device_seconds']:.3g} s"
        out.append(
            f"  {NAMES[name]:13}{side['tokens_per_second']:>10,.0f} tokens/s ({seconds['low']:.3g} "
            f"to {seconds['high']:.3g} s), peak {side['peak_gib']:.2f} GiB{share}  [{side['version']}]"
        )
    if "ratio" in found:
        same = "same results" if found["same"] else "RESULTS DIFFER"
        out.append(f"  speed {_spread(found['ratio'])}, memory {found['memory_ratio']:.2f}, {same}")
    return out


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def against_length(matches: list[dict[str, Any]]) -> list[Chart]:
    """Milliseconds a token, and peak memory, against the length, for works that differ in it."""
    charts = []
    for title, unit, value in (
        (
            "Time per token",
            "milliseconds",
            lambda side, work: 1e3 * side["seconds"]["median"] / work["tokens"],
        ),
        ("Peak memory", "GiB", lambda side, _: side["peak_gib"]),
    ):
        lines = [
            Line(
                NAMES[name],
                NAMES[name],
                Style(number),
                [Point(work["tokens"], value(work["sides"][name], work)) for work in matches],
                "none",
            )
            for number, name in enumerate(matches[0]["sides"])
        ]
        x, y = (
            length_axis([work["tokens"] for work in matches]),
            linear_axis(unit, [point.y for line in lines for point in line.points], zero=True),
        )
        text = f"{title} of {matches[0]['work'].split(',')[0]} against the length."
        svg = line_chart(title, text, lines, x, y, key=unit.lower())
        rows = [
            [line.name, f"{point.x:,}", f"{point.y:.3g}"] for line in lines for point in line.points
        ]
        numbers = table_of_texts(title, ["backend", "tokens", unit], rows)
        charts.append(Chart(title, text, svg, numbers, legend_of(lines)))
    return charts


def plot(figures: dict[str, Any], out: Path) -> list[Path]:
    """Draw time and memory of the part "memory" against the length, into FILE.svg and FILE-memory.svg, or .html."""
    time, peak = against_length(figures["memory"]["matches"])
    return [write_chart(time, out), write_chart(peak, out.with_stem(f"{out.stem}-memory"))]
