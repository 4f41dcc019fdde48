"""Published and measured numbers in words."""

from collections.abc import Sequence

from ctxext.report.analysis.published import Outcome
from ctxext.report.table import Column, Table
from ctxext.terminal import printable_line


def outcome_text(outcome: Outcome) -> str:
    """One sentence: what was expected, what was measured, and whether they agree."""
    expected = outcome.expected
    return printable_line(
        f"{measurement_text(outcome)}: expected {expected_text(outcome)} ({expected.what}; "
        f"{expected.source}), measured {measured_text(outcome)}: {outcome.verdict}."
    )


def measurement_text(outcome: Outcome) -> str:
    """Such as ppl:truncate at 8,192 tokens."""
    percent = " (%)" if _is_percent(outcome) else ""
    return f"{outcome.expected.evaluation}{percent} at {outcome.expected.seq_len:,} tokens"


def expected_text(outcome: Outcome) -> str:
    """Such as 3.35 ± 0.05."""
    spec = "g" if _is_percent(outcome) else ".2f"
    return f"{outcome.expected.value:{spec}} ± {outcome.expected.tolerance:{spec}}"


def measured_text(outcome: Outcome) -> str:
    """Such as 3.41 [3.36, 3.46]."""
    if outcome.measured is None:
        return "nothing"
    return f"{outcome.measured:.3g}" if _is_percent(outcome) else f"{outcome.measured:.2f}"


def expected_table(outcomes: Sequence[Outcome], *, several_runs: bool) -> Table[Outcome]:
    """A row per expected number."""

    def measurement(outcome: Outcome) -> str:
        run = f"{outcome.run}: " if several_runs else ""
        return run + measurement_text(outcome)

    columns = [
        Column("measurement", measurement),
        Column("expected", expected_text),
        Column("measured [95 % interval]", measured_text),
        Column[Outcome]("verdict", lambda outcome: outcome.verdict),
        Column[Outcome]("source", lambda o: f"{o.expected.what}; {o.expected.source}"),
    ]
    return Table("Expected and measured", columns, outcomes)


def _is_percent(outcome: Outcome) -> bool:
    return outcome.expected.metric == "accuracy"
