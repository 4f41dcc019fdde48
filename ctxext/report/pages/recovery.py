"""Tables, a chart and sentences about recovery."""

from collections.abc import Sequence
from typing import Any

from ctxext.report.analysis.records import Variant, group
from ctxext.report.analysis.recovery import GATE, Recovered, RecoveryDifference
from ctxext.report.drawing.axes import length_axis, linear_axis
from ctxext.report.drawing.charts import Chart, Line, Point, legend_of, line_chart
from ctxext.report.drawing.svg import ReferenceLine
from ctxext.report.pages.styles import Styles
from ctxext.report.pages.tables_by_length import (
    ONE_DOCUMENT,
    control_note,
    interval_text,
    table_by_length,
)
from ctxext.report.table import Table, table_of_texts

UNUSED = "not used alone"
"""Where a needle does not even help on its own."""
DEFINITION = (
    "Recovery: (nats of the right answer without its needle - with it in the text, among others) / "
    "(without it - with the needle alone), a ratio of means with Fieller's interval."
)


def recovered_text(result: Recovered) -> str:
    """Such as: 0.93 [0.88, 0.97] pass."""
    if result.recovery is None:
        return UNUSED
    return interval_text(result.recovery, ".2f") + (" pass" if result.passes else "")


def recovery_table(results: Sequence[Recovered]) -> Table[Any]:
    """Recovery by length, and which lengths pass the gate."""
    notes = [f"{DEFINITION} pass: the lower end of the interval is at least {GATE:.2f}."]
    if unused := unused_sentence(results):
        notes.append(unused)
    notes += control_note(result.variant for result in results)
    title = f"recovery, {results[0].task} [95 % interval over documents]"
    return table_by_length(title, results, recovered_text, key="recovery", notes=notes)


def recovery_depth_table(results: Sequence[Recovered]) -> Table[Any]:
    """The same by depth; a row is a variant at a depth. 0 is the start of the text."""

    def name(result: Recovered) -> str:
        return f"{result.variant.name}, depth {result.depth:.2f}"

    title = f"recovery, {results[0].task}, by depth (0: start) [95 % interval over documents]"
    return table_by_length(title, results, recovered_text, name=name, key="recovery_by_depth")


def unused_sentence(results: Sequence[Recovered]) -> str:
    """Which variants do not use the needle even alone; "" if all do."""
    unused = dict.fromkeys(r.variant.phrase for r in results if not r.uses_needle_alone)
    if not unused:
        return ""
    verb = "does" if len(unused) == 1 else "do"
    return (
        f"{', '.join(unused)} {verb} not use the needle even alone, so that there is nothing to "
        "recover and no number."
    )


def recovery_sentences(results: Sequence[Recovered]) -> list[tuple[Variant, str]]:
    """Up to which length each variant passes the gate, with the number at the longest."""
    sentences = []
    for variant, own in group(results, lambda result: result.variant).items():
        own.sort(key=lambda result: result.seq_len)
        if all(result.recovery is None for result in own):
            sentences.append((variant, unused_sentence(own)))
            continue
        passed = []
        for result in own:
            if not result.passes:
                break
            passed.append(result)
        longest = own[-1]
        at_longest = f"{longest.seq_len:,} tokens: {recovered_text(longest).removesuffix(' pass')}"
        task = longest.task
        if len(passed) == len(own):
            verdict = f"passes at every length asked, at {at_longest}"
        elif passed:
            verdict = f"passes up to {passed[-1].seq_len:,} tokens; at {at_longest}"
        else:
            shortest = own[0]
            at = f"{shortest.seq_len:,} tokens: {recovered_text(shortest)}"
            verdict = f"does not pass, even at {at}"
        sentences.append(
            (
                variant,
                f"{variant.phrase}: recovery of {task}, in texts of its own (1: a needle in the "
                f"text is as good as alone; the 95 % lower bound must be {GATE:.2f}) "
                f"{verdict}{_lowest_text(longest)}.",
            )
        )
    return sentences


def _lowest_text(result: Recovered) -> str:
    """That the number is of several depths, and what the lowest is; "" at a single depth."""
    lowest = result.lowest_depth
    if lowest is None or lowest.recovery is None:
        return ""
    depths = len({record.question.depth for record in result.records})
    return (
        f", over {depths} depths; lowest at depth {lowest.depth:.2f} (0: start of the text), "
        f"{interval_text(lowest.recovery, '.2f')}"
    )


def recovery_difference_sentence(difference: RecoveryDifference, without: str) -> str:
    """How much more is recovered than by the base; without: names that, "without scaling"."""
    value, low, high = difference.difference
    interval = "no interval: a single document"
    if low is not None and high is not None:
        interval = f"95 % CI of the difference {low:+z.2f} to {high:+z.2f}, over "
        interval += f"{difference.num_documents} documents"
    start = f"{difference.b.variant.phrase}: recovery at {difference.b.seq_len:,} tokens"
    if low is not None and high is not None and low <= 0 <= high:
        return (
            f"{start} does not differ significantly from that {without} in the same texts: "
            f"{value:+z.2f} ({interval})."
        )
    more = "higher" if value > 0 else "lower"
    return f"{start} is {abs(value):.2f} {more} than {without} in the same texts ({interval})."


def recovery_chart(results: Sequence[Recovered], styles: Styles, key: str) -> Chart | None:
    """Recovery by length with whiskers, and the gate; None where no variant has a number."""
    measured = [(result, result.recovery) for result in results if result.recovery]
    if not measured:
        return None
    lines = []
    for variant, own in group(measured, lambda pair: pair[0].variant).items():
        label, style = styles[variant]
        own.sort(key=lambda pair: pair[0].seq_len)
        points = [Point(result.seq_len, *interval) for result, interval in own]
        lines.append(Line(label, variant.name, style, points))
    title = f"{results[0].task}: recovery"
    lengths = sorted({result.seq_len for result, _ in measured})
    values = [p.y for line in lines for p in line.points]
    # An interval next to an unused needle can be wider than any page.
    ends = [
        min(2.0, max(-1.0, v))
        for line in lines
        for p in line.points
        for v in (p.low, p.high)
        if v is not None
    ]
    svg = line_chart(
        title,
        DEFINITION,
        lines,
        length_axis(lengths),
        linear_axis("recovery", [0.0, 1.0, *values, *ends]),
        key=key,
        references=[
            ReferenceLine(measured[0][0].variant.window, "window"),
            ReferenceLine(GATE, "gate", False),
        ],
    )
    numbers: Table[Any] = table_of_texts(
        title,
        ["variant", "tokens", "recovery", "95 % interval", "nats from the needle alone", "texts"],
        [
            [
                result.variant.name,
                f"{result.seq_len:,}",
                f"{interval.value:.3f}",
                interval.bounds(".3f", ONE_DOCUMENT),
                f"{result.alone.value:.2f}",
                str(result.num_texts),
            ]
            for result, interval in measured
        ],
    )
    return Chart(title, DEFINITION, svg, numbers, legend_of(lines))
