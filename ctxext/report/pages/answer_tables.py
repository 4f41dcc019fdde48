"""Tables of the answers to one task: right answers, other measures, controls, mistakes, lengths."""

from collections.abc import Callable, Sequence
from typing import Any

from ctxext.evals.record import AnswerRecord
from ctxext.report.analysis.comparisons import differences_to_first
from ctxext.report.analysis.context_gain import Gain, gains
from ctxext.report.analysis.lengths import AchievedLengths, Spread, achieved_lengths
from ctxext.report.analysis.mistakes import Mistakes, mistakes
from ctxext.report.analysis.pooling import seed_of, seeds_of
from ctxext.report.analysis.records import TaskResults, Variant, group, num_correct, seq_lens
from ctxext.report.analysis.results import Results
from ctxext.report.analysis.scores import Scores, are_too_few_texts, chance_level, scores
from ctxext.report.analysis.study import Study
from ctxext.report.pages.measures import CHOICE, Measure
from ctxext.report.pages.tables_by_length import (
    BASELINE,
    CONTROLS,
    GAIN_UNIT,
    NOT_ASKED,
    Line,
    columns_by_length,
    control_note,
    interval_text,
    table_by_length,
)
from ctxext.report.table import Column, Table, table_of_texts

PROBABILITY = "probability of the right answer"
"""The title of "prob." in cells."""


def score_text(scores: Scores) -> str:
    """Such as 18/20 90 [70, 97] prob. 0.85."""
    counts = f"{scores.correct}/{scores.n}"
    return f"{counts} {scores.accuracy:.0f} prob. {scores.answer_probability:.2f}"


def accuracy_table(study: Study) -> Table[Any]:
    """Right answers by length."""
    title = f"{study.task.name}: right / asked, % [95 % interval], {PROBABILITY}"
    notes = [*guess_note(study.task), *control_note(study.task.variants)]
    return table_by_length(title, study.scores, score_text, key="retrieval", notes=notes)


def guess_note(task: TaskResults) -> list[str]:
    """What taking any of the values in a text gives, where texts hold as many values each."""
    counts = {len(record.question.distances) for record in task.records}
    if counts == {1} or len(counts) != 1 or 0 in counts:
        return []
    (count,) = counts
    return [
        f"Every text holds {count} values: a guess among them is right in {100 / count:.0f} % of "
        "the questions."
    ]


def samples_table(study: Study) -> Table[Any]:
    """What questions that share texts are worth; without rows where each has its own text."""
    entries = [s for s in study.scores if s.num_texts < s.n]

    def alike(scores: Scores) -> str:
        return "-" if scores.icc is None else f"{scores.icc:+z.2f}"

    def independent(scores: Scores) -> str:
        return _range_text(*scores.independent, ".0f")

    def per_text(scores: Scores) -> str:
        low, high = scores.independent
        return _range_text(low / scores.num_texts, high / scores.num_texts, ".1f")

    columns = [
        Column[Scores]("variant", lambda s: s.variant.name),
        Column[Scores]("tokens", lambda s: f"{s.seq_len:,}"),
        Column[Scores]("questions", lambda s: f"{s.n:,}"),
        Column[Scores]("texts read", lambda s: f"{s.num_texts:,}"),
        Column("correlation within a text", alike),
        Column("effective sample size", independent),
        Column("per text read", per_text),
    ]
    title = f"{study.task.name}: questions that share texts, and how many independent ones they are"
    notes = [
        "The last column is how many times fewer texts were read than by one question per text, "
        "for the same precision. -: all answers are the same and show no correlation, so that each "
        "text counts as one."
    ]
    if any(are_too_few_texts(s.num_texts, s.n) for s in entries):
        notes.append(
            "Of five texts or fewer, a correlation near 0 may be chance: the range is from one "
            "question per text to all of them. Intervals take the estimate."
        )
    return Table(title, columns, entries, notes if entries else [])


def _range_text(low: float, high: float, spec: str) -> str:
    """Such as: 4 to 64; the number alone where both are the same."""
    return f"{low:{spec}}" if low == high else f"{low:{spec}} to {high:{spec}}"


def differences_table(task: TaskResults) -> Table[Any]:
    """Percentage points of every variant over the first, by length."""
    first = task.variants[0]
    title = f"{task.name}: difference to {first.name}, percentage points [95 % paired interval]"
    differences = differences_to_first(task)
    return table_by_length(title, differences, lambda x: f"{x.points:+z.0f}", key="differences")


def seeds_table(study: Study) -> Table[Any]:
    """Right answers by training seed and length of the variants that pool several seeds."""
    task = study.task
    rows = [
        [variant.name, *(_by_seed_text(task.select(variant, n)) for n in task.seq_lens)]
        for variant in task.variants
        if seeds_of(task.select(variant))
    ]
    seeds = ", ".join(map(str, seeds_of(task.records)))
    title = f"{task.name}: right answers by training seed ({seeds})"
    return table_of_texts(title, ["variant", *(f"{n:,}" for n in task.seq_lens)], rows)


def _by_seed_text(records: Sequence[AnswerRecord]) -> str:
    """Such as "31, 29 of 40"."""
    by_seed = group(records, seed_of)
    if not by_seed:
        return NOT_ASKED
    in_order = [by_seed[seed] for seed in sorted(by_seed, key=lambda seed: seed or 0)]
    return f"{', '.join(str(num_correct(own)) for own in in_order)} of {len(in_order[0])}"


def measure_table(study: Study, measure: Measure) -> Table[Any]:
    """One measure by length, of questions and controls; without rows where no record has it."""

    def name(scores: Scores) -> str:
        condition = scores.condition
        control = f", {CONTROLS[condition]}" if condition in CONTROLS else ""
        return scores.variant.name + control

    every = [*study.scores, *study.control_scores]
    measured = [s for s in every if measure.value(s) is not None]
    title = f"{study.task.name}: {measure.title}"
    if measure is CHOICE and (level := chance_level(study.task.records)) is not None:
        title += f", chance {level:.3g}"
    return table_by_length(f"{title} [95 % interval]", measured, measure.text, name=name)


def controls_table(study: Study) -> Table[Any]:
    """The controls of every variant that was asked them, and the in-window baseline."""
    task = study.task
    controls = study.control_scores
    lines: list[Line[Scores]] = []
    for condition, name in CONTROLS.items():
        by_variant = group((s for s in controls if s.condition == condition), lambda s: s.variant)
        for variant, own in by_variant.items():
            by_length = {s.seq_len: s for s in own}
            lines.append(Line(f"{name}, {variant.name}", by_length, NOT_ASKED))
        if left := [v for v in task.variants if v not in by_variant]:
            others = _others_text(left) if by_variant else "every variant"
            lines.append(Line(f"{name}, {others}", {}, NOT_ASKED))
    for baseline in study.baselines:
        (own,) = scores(baseline.records, task.variants)
        lines.append(Line(f"{BASELINE}, {baseline.variant.name}", {own.seq_len: own}))
    if not study.baselines:
        lines.append(Line(BASELINE, {}, NOT_ASKED))
    lengths = seq_lens([*task.records, *task.controls])
    title = f"{task.name}: controls, right / asked, % [95 % interval], {PROBABILITY}"
    columns = columns_by_length(lengths, score_text)
    return Table(title, columns, lines, key="controls", results=controls)


def _others_text(others: Sequence[Variant]) -> str:
    """The name of a single one, else how many there are."""
    return others[0].name if len(others) == 1 else f"{len(others)} other variants"


def unmatched_controls_table(results: Results) -> Table[Any]:
    """Controls of questions that were not asked themselves."""
    columns = [
        Column[Scores]("variant", lambda s: s.variant.name),
        Column[Scores]("task", lambda s: s.records[0].question.title),
        Column[Scores]("control", lambda s: CONTROLS[s.condition]),
        Column[Scores]("tokens", lambda s: f"{s.seq_len:,}"),
        Column[Scores](f"right / asked, %, {PROBABILITY}", score_text),
    ]
    controls = scores(results.unmatched_controls, results.variants)
    title = "controls of questions that were not asked themselves"
    return Table(title, columns, controls, key="controls", results=controls)


def gain_table(task: TaskResults) -> Table[Any]:
    """Context gain by length, or a note that it was not measured."""
    by_variant = gains(task)
    title = f"{task.name}: context gain, {GAIN_UNIT} [95 % interval over documents]"
    if not by_variant:
        note = f"{NOT_ASKED}: it takes the same questions with the needle and without"
        return table_of_texts(title, [], [], [note])
    notes = []
    if left := [v for v in task.variants if v not in by_variant]:
        notes = [f"{_others_text(left)}: not asked without the needle"]
    flat = [gain for of_variant in by_variant.values() for gain in of_variant]

    def text(gain: Gain) -> str:
        """With the number of questions; of one text, as there is no interval, with that."""
        has_bounds = gain.mean.low is not None
        return interval_text(gain.mean, ".2f") + (f" of {gain.n}" if has_bounds else "")

    return table_by_length(title, flat, text, key="gain", notes=notes)


def mistakes_table(task: TaskResults) -> Table[Mistakes]:
    """Shares of right answers and of the kinds of mistakes that occur, by variant and length."""

    def share_of(kind: str) -> Callable[[Mistakes], str]:
        return lambda m: f"{100 * m.shares[kind]:.0f}" if m.counts[kind] else "."

    entries = mistakes(task)
    occurring = [kind for kind in entries[0].counts if any(m.counts[kind] for m in entries)]
    columns = [
        Column[Mistakes]("variant", lambda m: m.variant.name),
        Column[Mistakes]("tokens", lambda m: f"{m.seq_len:,}"),
        *(Column(kind, share_of(kind)) for kind in occurring),
    ]
    title = f"{task.name}: right answers and kinds of mistakes, % of the questions asked"
    return Table(title, columns, entries, key="mistakes", results=entries)


def lengths_table(studies: Sequence[Study]) -> Table[AchievedLengths]:
    """Achieved lengths and depths of all tasks."""
    entries = [lengths for study in studies for lengths in achieved_lengths(study.task)]

    def depth_error(lengths: AchievedLengths) -> str:
        return f"{lengths.depth_error:.3f}" if lengths.depths else "-"

    columns = [
        Column[AchievedLengths]("task", lambda x: x.task.name),
        Column[AchievedLengths]("tokens asked", lambda x: f"{x.seq_len:,}"),
        Column[AchievedLengths]("prompts", lambda x: str(len(x.records))),
        Column[AchievedLengths]("tokens", lambda x: _spread_text(x.tokens, ",.0f")),
        Column[AchievedLengths]("depth", lambda x: _spread_text(x.depths, ".2f")),
        Column[AchievedLengths]("largest depth error", depth_error),
    ]
    exact = ", all exact" if all(x.exact for x in entries) else ""
    title = f"Achieved lengths{exact}, and depths: min / median / max"
    return Table(title, columns, entries, key="lengths", results=entries)


def _spread_text(spread: Spread | None, spec: str) -> str:
    if spread is None:
        return "-"
    texts = [f"{value:{spec}}" for value in spread]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)
