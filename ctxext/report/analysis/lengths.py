"""How long the texts really were: achieved tokens and depths beside the lengths that were asked for."""

from collections.abc import Sequence
from statistics import median

from ctxext.report.analysis.records import Question, Row, group
from ctxext.report.drawing.appearance import linear_axis
from ctxext.report.drawing.bars import histograms
from ctxext.report.drawing.charts import Chart
from ctxext.report.pages.tables import Table, grid


def prompts(question: Question) -> dict[int, list[Row]]:
    """Every prompt once, whichever variants it was put to, by nominal length."""
    said = [row for row in question.rows if "tokens" in row]
    once = {(row["item"], row["prompt_sha256"]): row for row in said}
    return dict(sorted(group(once.values(), lambda row: row["seq_len"]).items()))


def exact(question: Question) -> bool:
    """Whether every prompt, room for the answer included, is as long as was asked."""
    return all(row["tokens"] == n for n, rows in prompts(question).items() for row in rows)


def text(question: Question) -> list[str]:
    """One line where all lengths are exact, else a table; nothing for rows that do not say."""
    found = prompts(question)
    if not found:
        return []
    if exact(question):
        lengths = ", ".join(f"{n:,}" for n in found)
        off = max(map(farthest, found.values()))
        return [
            f"{question.name}: texts of {lengths} tokens, all exactly; depths within {off:.3f} of those asked"
        ]
    title = f"{question.name}: achieved tokens and depths, least / median / most"
    lines = [
        [
            f"{n:,}",
            str(len(rows)),
            _spread(rows, "tokens", ",.0f"),
            _spread(rows, "depth_achieved", ".2f"),
        ]
        for n, rows in found.items()
    ]
    return [grid(title, ["asked", "prompts", "tokens", "depth"], lines)]


def table(questions: Sequence[Question]) -> Table | None:
    """The same for the page, all tasks in one."""
    lines = [
        [
            question.name,
            f"{n:,}",
            str(len(rows)),
            _spread(rows, "tokens", ",.0f"),
            _spread(rows, "depth_achieved", ".2f"),
            f"{farthest(rows):.3f}",
        ]
        for question in questions
        for n, rows in prompts(question).items()
    ]
    header = [
        "task",
        "tokens asked",
        "prompts",
        "tokens, least / median / most",
        "depth, least / median / most",
        "farthest from the depth asked",
    ]
    all_exact = ", all exact" if all(map(exact, questions)) else ""
    return Table(f"Achieved lengths and depths{all_exact}", header, lines) if lines else None


def farthest(rows: Sequence[Row]) -> float:
    """The largest distance of a depth from the one that was asked."""
    return max(
        (abs(row["depth_achieved"] - row["depth"]) for row in rows if "depth" in row), default=0.0
    )


def chart(question: Question, key: str) -> Chart | None:
    """Histograms of tokens over tokens asked, where they differ."""
    found = prompts(question)
    if exact(question):
        return None
    shares = [(f"{n:,}", [100 * row["tokens"] / n for row in rows]) for n, rows in found.items()]
    axis = linear_axis(
        "tokens, % of those asked", [100, *(x for _, values in shares for x in values)]
    )
    title = f"{question.name}: achieved lengths"
    words = "Histograms of prompt and room for the answer, in percent of the tokens asked; a row per length asked."
    rows = [
        [label, f"{min(values):.1f}", f"{median(values):.1f}", f"{max(values):.1f}"]
        for label, values in shares
    ]
    return Chart(
        title,
        words,
        histograms(title, words, shares, axis, key=key),
        ["tokens asked", "least, %", "median, %", "most, %"],
        rows,
    )


def _spread(rows: Sequence[Row], name: str, form: str) -> str:
    values = [row[name] for row in rows if name in row]
    if not values:
        return "-"
    found = [f"{x:{form}}" for x in (min(values), median(values), max(values))]
    return found[0] if len(set(found)) == 1 else " / ".join(found)
