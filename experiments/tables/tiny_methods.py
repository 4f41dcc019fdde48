"""One table of many methods from the records of runs: right answers, perplexity, and differences.

    python experiments/tables/tiny_methods.py runs/tiny-methods
    python experiments/tables/tiny_methods.py runs/tiny-trained/*-? \\
        --reference "yarn(factor=4, beta_fast=8), 48 steps at 1024 (frequencies"

Right answers and perplexity are those of `ctxext report`, which has their intervals, in one row per
method. Differences are to one reference at each length beyond the window: percentage points on the
same questions with the paired score interval of reports, and its exact p-value, adjusted by Holm's
method for all differences of the table. Seeds of a training are pooled as in reports: their answers
about one text are not independent.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ctxext import report
from ctxext.evals.record import AnswerRecord
from ctxext.report.analysis.comparisons import ALPHA, Comparison, as_family, compare, pairs
from ctxext.report.analysis.perplexity import Perplexity, perplexities
from ctxext.report.analysis.pooling import seed_of
from ctxext.report.analysis.records import TaskResults, Variant, group, num_correct
from ctxext.report.analysis.results import Results
from ctxext.report.table import Table, table_of_texts

REFERENCE = "yarn(factor={factor}, beta_fast=8)"
"""The reference at each length: {factor} is the length in windows."""
NOTHING = "-"


@dataclasses.dataclass(frozen=True)
class Row:
    """A variant; everything by length in tokens."""

    variant: Variant
    answers: dict[int, list[AnswerRecord]]
    perplexity: dict[int, Perplexity]
    difference: dict[int, Comparison]
    """To the reference; the p-values are adjusted."""

    def right_text(self, seq_len: int) -> str:
        """Right answers, of each seed if there are several."""
        records = self.answers.get(seq_len)
        if not records:
            return NOTHING
        by_seed = group(records, seed_of)
        in_order = sorted(by_seed, key=lambda seed: seed or 0)
        return ", ".join(str(num_correct(by_seed[seed])) for seed in in_order)

    def perplexity_text(self, seq_len: int) -> str:
        entry = self.perplexity.get(seq_len)
        value = entry.perplexity if entry else None
        return NOTHING if value is None else f"{value.value:.1f}"

    def difference_text(self, seq_len: int) -> str:
        """Points and their interval, the adjusted p-value, and a star if it is significant."""
        difference = self.difference.get(seq_len)
        if difference is None:
            return NOTHING
        star = "*" if difference.significant else ""
        return f"{difference.points:+z.0f} p {difference.adjusted_p:.2g}{star}"

    @property
    def merit(self) -> tuple[float, ...]:
        """Shares of right answers, the longest texts first."""
        lengths = sorted(self.answers, reverse=True)
        return tuple(num_correct(self.answers[n]) / len(self.answers[n]) for n in lengths)


def find_reference(task: TaskResults, reference: str, seq_len: int) -> Variant:
    """The variant whose name is, or alone begins with, `reference`, asked at `seq_len`.

    Raises ValueError, with the names that there are, for none or several.
    """
    name = reference.replace("{factor}", f"{seq_len / task.window:g}")
    asked = [variant for variant in task.variants if task.select(variant, seq_len)]
    exact = [variant for variant in asked if variant.name == name]
    found = exact or [variant for variant in asked if variant.name.startswith(name)]
    if len(found) != 1:
        names = "; ".join(variant.name for variant in found or asked)
        several = "several variants begin" if found else "no variant begins"
        raise ValueError(
            f"--reference: {several} with {name!r} at {seq_len:,} tokens; choose one of: {names}"
        )
    return found[0]


def differences(
    task: TaskResults, reference: str, lengths: Sequence[int]
) -> dict[tuple[Variant, int], Comparison]:
    """Every variant against the reference at each length, by both; adjusted as one family."""
    found = {}
    for seq_len in lengths:
        of_length = find_reference(task, reference, seq_len)
        answers = task.select(of_length, seq_len)
        for variant in task.variants:
            both = pairs(answers, task.select(variant, seq_len))
            if both and variant != of_length:
                found[variant, seq_len] = compare(of_length, variant, both)
    return dict(zip(found, as_family(list(found.values())), strict=True))


def table(results: Results, reference: str, lengths: Sequence[int] = ()) -> Table[Sequence[str]]:
    """The table of the first retrieval task; lengths: of the differences, by default all beyond the
    window.

    Raises ValueError without such a task, for lengths that were not asked, and as `find_reference`.
    """
    if not results.studies:
        raise ValueError("these runs answered no questions; give runs with a retrieval evaluation")
    task = results.studies[0].task
    compared = list(lengths) or [n for n in task.seq_lens if n > task.window]
    if unknown := sorted(set(compared) - set(task.seq_lens)):
        raise ValueError(
            f"--lengths: nothing was asked at {', '.join(map(str, unknown))} tokens; the lengths "
            f"are {', '.join(map(str, task.seq_lens))}"
        )
    rows = _rows(results, task, differences(task, reference, compared))
    texts = [n for n in task.seq_lens if any(n in row.perplexity for row in rows)]
    header = ["method", *(f"{n:,}" for n in task.seq_lens), *(f"ppl {n:,}" for n in texts)]
    header += [f"points at {n:,}" for n in compared]
    cells = [
        [
            row.variant.name,
            *map(row.right_text, task.seq_lens),
            *map(row.perplexity_text, texts),
            *map(row.difference_text, compared),
        ]
        for row in rows
    ]
    return table_of_texts(_title(task), header, cells, _notes(task, rows, reference))


def _rows(
    results: Results, task: TaskResults, family: dict[tuple[Variant, int], Comparison]
) -> list[Row]:
    """A row per variant, the best first."""
    losses = perplexities(results.losses[0], results.variants) if results.losses else []
    by_variant = group(losses, lambda entry: entry.variant)
    rows = []
    for variant in task.variants:
        found = {n: family[variant, n] for n in task.seq_lens if (variant, n) in family}
        rows.append(
            Row(
                variant,
                group(task.select(variant), lambda record: record.seq_len),
                {entry.seq_len: entry for entry in by_variant.get(variant, [])},
                found,
            )
        )
    return sorted(rows, key=lambda row: row.merit, reverse=True)


def _title(task: TaskResults) -> str:
    counts = {
        len(by_seed)
        for variant in task.variants
        for n in task.seq_lens
        for by_seed in group(task.select(variant, n), seed_of).values()
    }
    asked = " or ".join(map(str, sorted(counts)))
    return f"{task.name}: right of {asked}, perplexity, and points over the reference"


def _notes(task: TaskResults, rows: Sequence[Row], reference: str) -> list[str]:
    family = sum(len(row.difference) for row in rows)
    return [
        f"Points: over {reference} on the same questions, with 95 % paired intervals, not "
        f"adjusted. p: exact, adjusted for all {family} differences by Holm's method; * is below "
        f"{ALPHA:g}. {task.window:,} tokens are the window of pre-training.",
    ]


def to_markdown(table: Table[Sequence[str]]) -> str:
    """The same as a Markdown table, without the title."""
    rule = ["---"] * len(table.header)
    lines = [f"| {' | '.join(cells)} |" for cells in (table.header, rule, *table.cells)]
    return "\n".join([*lines, "", *table.notes])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of run directories; 2 for what cannot be done, which one line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Run directories.")
    parser.add_argument(
        "--reference",
        default=REFERENCE,
        metavar="NAME",
        help="The name of a variant, or its beginning, with {factor} for the length in windows; "
        "default: %(default)s.",
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[],
        metavar="TOKENS",
        help="The lengths of the differences; default: all beyond the window.",
    )
    parser.add_argument("--markdown", action="store_true", help="Print a Markdown table.")
    args = parser.parse_args(argv)
    try:
        made = table(Results(report.read_records(args.runs)), args.reference, args.lengths)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(to_markdown(made) if args.markdown else made.to_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
