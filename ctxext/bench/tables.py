"""The results of a benchmark as text, and drawn against the length."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctxext.report.drawing.axes import length_axis, linear_axis
from ctxext.report.drawing.charts import Chart, Line, Point, legend_of, line_chart
from ctxext.report.drawing.svg import Style
from ctxext.report.pages.page import write_chart
from ctxext.report.table import table_of_texts


def describe(result: dict[str, Any]) -> str:
    """One result as text, in a line or more."""
    if result["part"] == "eval":
        return _evaluation(result)
    if result["part"] == "io":
        return _files(result)
    return "\n".join(_comparison(result))


def _evaluation(x: dict[str, Any]) -> str:
    return (
        f"eval, {x['evaluation']}: {x['items']:,} items in {x['seconds']:.1f} s, "
        f"{x['items_per_second']:.1f} items/s; {x['outside']:.1%} of the time outside the model, "
        f"{x['padding']:.1%} on padding"
    )


def _files(result: dict[str, Any]) -> str:
    return (
        f"io: {result['bytes'] / 1e9:.2f} GB converted in {result['convert']['seconds']:.2f} s, "
        f"copied in {result['copy']['seconds']:.2f} s; {_spread(result['ratio'])} of the speed of "
        "copying"
    )


def _comparison(comparison: dict[str, Any]) -> list[str]:
    lines = [comparison["case"]]
    if comparison["cpu_isa"]:
        lines[0] += f", with instructions up to {comparison['cpu_isa'].upper()}"
    for name, backend in comparison["backends"].items():
        seconds = backend["seconds"]
        details = ""
        if "product_share" in backend:
            details += f", {backend['product_share']:.0%} of the rate of products"
        if "roofline" in backend:
            details += f", {backend['roofline']:.0%} of the memory roofline"
        if "mfu" in backend:
            details += f", MFU {backend['mfu']:.1%}"
        if "device_seconds" in backend:
            details += f", the device busy for {backend['device_seconds']:.3g} s"
        lines.append(
            f"  {name:13}{_rate(backend)} ({seconds['low']:.3g} to "
            f"{seconds['high']:.3g} s), peak {backend['peak_gib']:.2f} GiB{details}  "
            f"[{backend['version']}]"
        )
    if "ratio" in comparison:
        same = "same results" if comparison["same"] else "RESULTS DIFFER"
        speed = _spread(comparison["ratio"])
        lines.append(f"  speed {speed}, memory {comparison['memory_ratio']:.2f}, {same}")
    return lines


def _rate(backend: dict[str, Any]) -> str:
    if "operations_per_second" in backend:
        return f"{backend['operations_per_second'] / 1e9:>10,.0f} GFLOP/s"
    return f"{backend['tokens_per_second']:>10,.0f} tokens/s"


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def length_charts(comparisons: list[dict[str, Any]]) -> list[Chart]:
    """Milliseconds per token, and peak memory, against the length that the cases differ in."""

    def milliseconds(name: str, comparison: dict[str, Any]) -> float:
        return 1e3 * comparison["backends"][name]["seconds"]["median"] / comparison["tokens"]

    def peak(name: str, comparison: dict[str, Any]) -> float:
        return comparison["backends"][name]["peak_gib"]

    return [
        _length_chart("Time per token", "milliseconds", comparisons, milliseconds),
        _length_chart("Peak memory", "GiB", comparisons, peak),
    ]


def _length_chart(
    title: str,
    unit: str,
    comparisons: list[dict[str, Any]],
    value: Callable[[str, dict[str, Any]], float],
) -> Chart:
    lines = [
        Line(
            name,
            name,
            Style(number),
            [Point(x["tokens"], value(name, x)) for x in comparisons],
            "none",
        )
        for number, name in enumerate(comparisons[0]["backends"])
    ]
    points = [(line.name, point) for line in lines for point in line.points]
    x_axis = length_axis([x["tokens"] for x in comparisons])
    y_axis = linear_axis(unit, [point.y for _, point in points], zero=True)
    text = f"{title} of {comparisons[0]['case'].split(',')[0]} against the length."
    svg = line_chart(title, text, lines, x_axis, y_axis, key=unit.lower())
    rows = [[name, f"{point.x:,}", f"{point.y:.3g}"] for name, point in points]
    numbers = table_of_texts(title, ["backend", "tokens", unit], rows)
    return Chart(title, text, svg, numbers, legend_of(lines))


def plot(results: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Draw time and memory of the part "memory" against the length.

    Writes FILE.svg and FILE-memory.svg, or .html; returns their paths.
    """
    comparisons = [result for result in results if result["part"] == "memory"]
    time, memory = length_charts(comparisons)
    return [write_chart(time, out), write_chart(memory, out.with_stem(f"{out.stem}-memory"))]
