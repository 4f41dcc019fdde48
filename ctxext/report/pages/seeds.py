"""Several training seeds as tables and as a chart."""

from collections.abc import Callable
from typing import Any

from ctxext.report.analysis.seeds import SeedResults, SeedVariant, Twins
from ctxext.report.drawing.axes import percent_axis
from ctxext.report.drawing.charts import Chart, Dot, dot_chart
from ctxext.report.drawing.svg import Style
from ctxext.report.table import Column, Table


def seed_tables(results: SeedResults) -> list[Table[Any]]:
    """Right answers by seed and length with the difference to plain fine-tuning, and twins."""

    def counts(seq_len: int) -> Callable[[SeedVariant], str]:
        return lambda variant: _counts_text(variant, seq_len)

    lengths = results.seq_lens
    columns = [
        Column[SeedVariant]("variant", lambda variant: variant.name),
        *(Column(f"{n:,}", counts(n)) for n in lengths),
        Column[SeedVariant]("points", lambda v: f"{v.over_plain:+z.0f}" if v.over_plain else ""),
    ]
    title = (
        f"{results.task}: right answers with training seeds {', '.join(map(str, results.seeds))}; "
        f"percentage points over {results.plain!r} at {lengths[-1]:,} "
        "[95 % paired interval over documents, not adjusted]"
    )
    tables: list[Table[Any]] = [Table(title, columns, results.variants)]
    if results.twins:
        columns = [
            Column[Twins]("variant", lambda twins: twins.b),
            Column[Twins]("over", lambda twins: twins.a),
            Column[Twins]("points", lambda twins: f"{twins.points:+z.0f}"),
        ]
        tables.append(Table("one method, two trainings", columns, results.twins))
    return tables


def seed_chart(results: SeedResults) -> Chart:
    """A dot per variant: percent right at the longest length."""
    longest = results.seq_lens[-1]
    title = (
        f"{results.task} at {longest:,} tokens after training, mean of {len(results.seeds)} seeds"
    )
    description = "Dots with 95 % intervals over documents; percent right."
    dots = []
    for variant in results.variants:
        value, low, high = variant.rate
        style = Style(0 if variant.name == results.plain else 1)
        dots.append(Dot(variant.name, style, value, low or 0, high or 0))
    svg = dot_chart(title, description, dots, percent_axis("right answers, %"), key="seeds")
    columns = [
        Column[SeedVariant]("variant", lambda variant: variant.name),
        Column[SeedVariant]("right, by seed", lambda variant: _counts_text(variant, longest)),
        Column[SeedVariant]("%", lambda variant: f"{variant.rate.value:.0f}"),
    ]
    return Chart(title, description, svg, Table(title, columns, results.variants))


def _counts_text(variant: SeedVariant, seq_len: int) -> str:
    """Such as "31, 29 of 40"."""
    if seq_len not in variant.num_asked:
        return "-"
    by_seed = ", ".join(map(str, variant.correct[seq_len].values()))
    return f"{by_seed} of {variant.num_asked[seq_len]}"
