"""What wrong answers are, by variant and length: the share of each kind of mistake, in words and as bars."""

from collections import Counter
from collections.abc import Sequence

from ctxext.report.analysis.records import Question, Row, Variant, group
from ctxext.report.drawing.bars import Bar, stacked
from ctxext.report.drawing.charts import Chart
from ctxext.report.pages.tables import grid

KINDS = {
    "part": "a part of the answer",
    "distractor": "a wrong value from the text",
    "copied": "copied from the text",
    "no number": "no number where one was asked",
    "made up": "made up",
    "nothing": "nothing",
}
RIGHT = "right"


def kinds(found: Sequence[Row]) -> dict[str, int]:
    """How many answers are right, and how many wrong of each kind that `tasks.scores.failure` knows.

    Raises ValueError for another kind.
    """
    counts = Counter(RIGHT if row["correct"] else row["failure"] for row in found)
    if alien := set(counts) - {RIGHT, *KINDS}:
        raise ValueError(
            f"rows name kinds of mistakes that are not known here: {', '.join(sorted(alien))}; read them "
            "with the version that wrote them"
        )
    return {kind: counts[kind] for kind in (RIGHT, *KINDS)}


def known(question: Question) -> bool:
    """Whether the rows say what was wrong; those of an older version do not."""
    return all(row["correct"] or row.get("failure") for row in question.rows)


def text(question: Question) -> list[str]:
    """Percent of the questions asked, a line per variant and length with mistakes; kinds that none was are left out."""
    if not known(question):
        return []
    some, lines = [kind for kind, count in kinds(question.rows).items() if count], []
    for variant in question.variants:
        asked = group(question.of(variant), lambda row: row["seq_len"])
        wrong = {
            n: rows for n, rows in sorted(asked.items()) if not all(row["correct"] for row in rows)
        }
        lines += [
            [
                variant.name if n == min(wrong) else "",
                str(n),
                *(_percent(kinds(rows)[k], rows) for k in some),
            ]
            for n, rows in wrong.items()
        ]
    title = f"{question.name}: right and kinds of mistakes, % of the questions asked"
    return [
        grid(f"{title}, where any was wrong", ["", "", *some], lines)
        if lines
        else f"{title}: none was wrong"
    ]


def _percent(count: int, rows: Sequence[Row]) -> str:
    return f"{100 * count / len(rows):.0f}" if count else "."


def chart(question: Question, variants: Sequence[Variant], key: str) -> Chart | None:
    """A bar per length for each of `variants`: right, then each kind of mistake."""
    if not known(question):
        return None
    groups, rows, seen = [], [], {RIGHT}
    for variant in variants:
        bars = []
        for n in question.seq_lens:
            if found := question.of(variant, n):
                counts = kinds(found)
                seen |= {kind for kind, count in counts.items() if count}
                bars.append(
                    Bar(
                        f"{n:,}",
                        [(f"k{i}", count / len(found)) for i, count in enumerate(counts.values())],
                    )
                )
                rows.append(
                    [
                        variant.name,
                        f"{n:,}",
                        *(f"{100 * x / len(found):.0f}" for x in counts.values()),
                    ]
                )
        groups.append((variant.name, bars))
    title = f"{question.name}: what answers are, by length"
    description = "A bar per variant and length: percent of the questions asked, right and by kind of mistake."
    names = {RIGHT: RIGHT, **KINDS}
    legend = [
        (
            f'<svg viewBox="0 0 34 14" class="swatch k{i}" aria-hidden="true"><path d="M4 2H30V12H4Z"/></svg>',
            name,
        )
        for i, (kind, name) in enumerate(names.items())
        if kind in seen
    ]
    return Chart(
        title,
        description,
        stacked(title, description, groups, key=key),
        ["variant", "tokens", *(f"{kind}, %" for kind in names)],
        rows,
        legend,
    )
