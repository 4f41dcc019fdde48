"""The result tables. Text, JSON and the page are renderings of what is made here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ctxext.evals.record import AnswerRecord, LossRecord
from ctxext.evals.stats import Effective
from ctxext.report.analysis.comparisons import differences_to_first
from ctxext.report.analysis.context_gain import gains
from ctxext.report.analysis.effective_context import (
    THRESHOLDS,
    EffectiveContext,
    effective_contexts,
)
from ctxext.report.analysis.lengths import AchievedLengths, Spread, achieved_lengths
from ctxext.report.analysis.mistakes import Mistakes, mistakes
from ctxext.report.analysis.perplexity import (
    Perplexity,
    PositionCurve,
    perplexities,
    position_curves,
)
from ctxext.report.analysis.records import TaskResults, Variant, group, seq_lens
from ctxext.report.analysis.results import Results
from ctxext.report.analysis.scores import Scores, chance_level, scores
from ctxext.report.analysis.study import THRESHOLD, Study
from ctxext.report.analysis.suites import SuiteMean
from ctxext.report.pages.measures import CHOICE, MEASURES, Measure
from ctxext.report.table import Column, Table, table_of_texts

NOT_ASKED = "not asked"
ONE_DOCUMENT = "none: a single document"
"""Where an interval would be, if there were one."""
CONTROLS = {"no-needle": "no needle (floor)", "needle-only": "needle only (ceiling)"}
BASELINE = "in-window baseline"
GAIN_UNIT = "nats per token"
KINDS_OF_TABLES = (
    "effective",
    "retrieval",
    "controls",
    "differences",
    "gain",
    "mistakes",
    "lengths",
    "suites",
    "perplexity",
    "by_position",
)
"""The keys of tables in JSON."""


class OfVariantAndLength(Protocol):
    """A result of one variant at one length."""

    @property
    def variant(self) -> Variant: ...

    @property
    def seq_len(self) -> int: ...


R = TypeVar("R", bound=OfVariantAndLength)


@dataclass(frozen=True)
class Line(Generic[R]):
    """A named row of a table with a column per length."""

    name: str
    by_length: dict[int, R]
    missing: str = "-"
    """The text of a cell without a result."""


def all_tables(results: Results) -> list[Table[Any]]:
    """Every table, in the order of reading."""
    studies = results.studies
    tables: list[Table[Any]] = []
    for study in studies:
        tables += task_tables(study)
    if studies:
        tables.append(lengths_table(studies))
    if results.unmatched_controls:
        tables.append(unmatched_controls_table(results))
    tables += [suite_table(suite, means) for suite, means in results.suites.items()]
    tables += [perplexity_table(records, results.variants) for records in results.losses]
    for records in results.losses:
        if curves := position_curves(records, results.variants):
            tables.append(position_table(curves))
    return tables + overview_tables(studies)


def task_tables(study: Study) -> list[Table[Any]]:
    """Every table about one task."""
    task = study.task
    tables: list[Table[Any]] = [accuracy_table(study)]
    if contexts := effective_contexts(study):
        title = f"{task.name}: effective context"
        tables += [effective_context_table(title, contexts), thresholds_table(study)]
    tables += [differences_table(task), controls_table(study)]
    tables += [measure_table(study, measure) for measure in MEASURES[1:]]
    tables += [gain_table(task), mistakes_table(task)]
    return [table for table in tables if table.rows or table.notes]


def columns_by_length(
    lengths: Sequence[int], text: Callable[[R], str], *, window: int | None = None
) -> list[Column[Line[R]]]:
    """The name of a line, and a column per length; a star marks lengths beyond the window."""

    def cell(seq_len: int) -> Callable[[Line[R]], str]:
        def result_text(line: Line[R]) -> str:
            result = line.by_length.get(seq_len)
            return line.missing if result is None else text(result)

        return result_text

    header = [f"{n:,}{'*' * (window is not None and n > window)}" for n in lengths]
    by_length = [Column(name, cell(n)) for name, n in zip(header, lengths, strict=True)]
    return [Column("variant", lambda line: line.name), *by_length]


def _variant_name(result: OfVariantAndLength) -> str:
    return result.variant.name


def table_by_length(
    title: str,
    results: Sequence[R],
    text: Callable[[R], str],
    *,
    name: Callable[[R], str] = _variant_name,
    key: str = "",
    notes: Sequence[str] = (),
) -> Table[Line[R]]:
    """A row per variant and a column per length; lengths beyond the window carry a star."""
    lengths = sorted({result.seq_len for result in results})
    window = min((result.variant.window for result in results), default=None)
    if window is not None and lengths[-1] > window:
        notes = [*notes, f"* longer than the pre-training window ({window:,} tokens)"]
    lines = [
        Line(line, {result.seq_len: result for result in of_line})
        for line, of_line in group(results, name).items()
    ]
    columns = columns_by_length(lengths, text, window=window)
    return Table(title, columns, lines, notes, key, results)  # pyright: ignore[reportArgumentType]


def score_text(scores: Scores) -> str:
    """Such as 18/20 90 [70, 97] p 0.85."""
    return f"{scores.correct}/{scores.n} {scores.accuracy:.0f} p {scores.answer_probability:.2f}"


def accuracy_table(study: Study) -> Table[Any]:
    """Right answers by length."""
    title = f"{study.task.name}: right / asked, % [95 % interval], p(answer)"
    return table_by_length(title, study.scores, score_text, key="retrieval")


def differences_table(task: TaskResults) -> Table[Any]:
    """Percentage points of every variant over the first, by length."""
    first = task.variants[0]
    title = f"{task.name}: difference to {first.name}, percentage points [95 % paired interval]"
    differences = differences_to_first(task)
    return table_by_length(title, differences, lambda x: f"{x.points:+z.0f}", key="differences")


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
    """Floor and ceiling of every variant that was asked them, and the in-window baseline."""
    task = study.task
    controls = study.control_scores
    lines: list[Line[Scores]] = []
    for condition, name in CONTROLS.items():
        by_variant = group((s for s in controls if s.condition == condition), lambda s: s.variant)
        for variant, own in by_variant.items():
            by_length = {s.seq_len: s for s in own}
            lines.append(Line(f"{name}, {variant.name}", by_length, NOT_ASKED))
        if left := len(task.variants) - len(by_variant):
            others = _others_text(left) if by_variant else "every variant"
            lines.append(Line(f"{name}, {others}", {}, NOT_ASKED))
    for baseline in study.baselines:
        (own,) = scores(baseline.records, task.variants)
        lines.append(Line(f"{BASELINE}, {baseline.variant.name}", {own.seq_len: own}))
    if not study.baselines:
        lines.append(Line(BASELINE, {}, NOT_ASKED))
    lengths = seq_lens([*task.records, *task.controls])
    title = f"{task.name}: controls, right / asked, % [95 % interval], p(answer)"
    columns = columns_by_length(lengths, score_text)
    return Table(title, columns, lines, key="controls", results=controls)


def _others_text(count: int) -> str:
    return f"{count} other variant{'s' * (count != 1)}"


def unmatched_controls_table(results: Results) -> Table[Any]:
    """Controls of questions that were not asked themselves."""
    columns = [
        Column[Scores]("variant", lambda s: s.variant.name),
        Column[Scores]("task", lambda s: s.records[0].question.title),
        Column[Scores]("control", lambda s: CONTROLS[s.condition]),
        Column[Scores]("tokens", lambda s: f"{s.seq_len:,}"),
        Column[Scores]("right / asked, %, p(answer)", score_text),
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
    if left := len(task.variants) - len(by_variant):
        notes = [f"{_others_text(left)} not asked without the needle"]
    flat = [gain for of_variant in by_variant.values() for gain in of_variant]
    return table_by_length(title, flat, lambda g: f"{g.mean:.2f} of {g.n}", key="gain", notes=notes)


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


def effective_context_table(title: str, contexts: Sequence[EffectiveContext]) -> Table[Any]:
    """Tokens and windows under the usual threshold."""
    several_tasks = len({context.study.task for context in contexts}) > 1
    task = [Column[EffectiveContext]("task", lambda c: c.study.task.name)] if several_tasks else []
    columns = [
        Column[EffectiveContext]("variant", lambda c: c.variant.name),
        *task,
        Column[EffectiveContext]("tokens", lambda c: c.length.estimate(",.0f")),
        Column[EffectiveContext](
            "windows [95 % interval]", lambda c: windows_text(c.length, c.variant)
        ),
    ]
    return Table(title, columns, contexts, key="effective", results=contexts)


def thresholds_table(study: Study) -> Table[EffectiveContext]:
    """Windows under the thresholds of papers; without rows where no variant has a length."""

    def under(threshold: float) -> Callable[[EffectiveContext], str]:
        def text(context: EffectiveContext) -> str:
            length = context.by_threshold[threshold]
            return windows_text(length, context.variant) if length else "\u2013"

        return text

    def by_own_baseline(context: EffectiveContext) -> str:
        length = context.by_own_baseline
        if length is None:
            return "no base score"
        if length == 0:
            return "none"
        censored = "> " if length == context.longest else ""
        return f"{censored}{length / context.variant.window:.2f}"

    columns = [
        Column[EffectiveContext]("variant", lambda c: c.variant.name),
        *(Column(f"at {threshold:g}", under(threshold)) for threshold in THRESHOLDS),
        Column("NoLiMa", by_own_baseline),
    ]
    title = f"{study.task.name}: effective context by threshold, windows [95 % interval]"
    note = (
        f"A threshold is a share of the {BASELINE}. Papers use others than {THRESHOLD:g}, so that "
        "their lengths are not comparable: PI 0.2, YaRN 0.8, PoSE 0.9. NoLiMa's rule compares each "
        "variant with its own mean score at lengths within the window; it has no interval, and "
        "lengths in between may fail."
    )
    return Table(title, columns, effective_contexts(study), [note])


def windows_text(length: Effective, variant: Variant) -> str:
    """Such as > 3.97 [3.0, > 4.0]: windows of pre-training."""
    windows = length.in_units_of(variant.window)
    return f"{windows.estimate('.2f')} {windows.bounds('.1f')}"


def suite_table(suite: str, means: Sequence[SuiteMean]) -> Table[Any]:
    """The mean over a suite's tasks, with the tasks that are missing in the notes."""

    def text(mean: SuiteMean) -> str:
        error = "" if mean.error is None else f" SE {mean.error:.1f}"
        num_asked = len(mean.tasks)
        return f"{mean.percent:.1f}{error}, {num_asked}/{num_asked + len(mean.missing)}"

    incomplete = [mean for mean in means if mean.missing]
    num_variants = len({mean.variant for mean in means})
    notes = [
        f"missing {', '.join(missing)}: {_where(those, num_variants)}"
        for missing, those in group(incomplete, lambda mean: mean.missing).items()
    ]
    title = (
        f"{suite}: mean score over tasks, % [95 % interval over documents], standard error, "
        "tasks asked / all"
    )
    return table_by_length(title, means, text, key="suites", notes=notes)


def _where(means: Sequence[SuiteMean], num_variants: int) -> str:
    """Such as: every variant at 256, 512; yarn at 1,024."""
    lengths = {
        variant.name: ", ".join(f"{mean.seq_len:,}" for mean in of_variant)
        for variant, of_variant in group(means, lambda mean: mean.variant).items()
    }
    return "; ".join(
        f"{'every variant' if len(names) == num_variants else ', '.join(names)} at {tokens}"
        for tokens, names in group(lengths, lambda name: lengths[name]).items()
    )


def estimator_title(record: LossRecord) -> str:
    """The perplexity that a record belongs to."""
    estimator = record.estimator
    if estimator.name == "longppl":
        return f"LongPPL: perplexity of key tokens, found by {estimator.keys_from}"
    if estimator.name == "same-target":
        return "perplexity of the same tokens with more context"
    stride = f", stride {estimator.stride:,}" if estimator.stride else ""
    return f"perplexity, estimator {estimator.name} (mean over {estimator.mean}s{stride})"


def perplexity_table(records: Sequence[LossRecord], variants: Sequence[Variant]) -> Table[Any]:
    """Perplexity by length, of records of one estimator."""

    def text(perplexity: Perplexity) -> str:
        value = perplexity.perplexity
        return "no key tokens" if value is None else f"{value:.2f}"

    title = f"{estimator_title(records[0])} [95 % interval over documents]"
    return table_by_length(title, perplexities(records, variants), text, key="perplexity")


def position_table(curves: Sequence[PositionCurve]) -> Table[PositionCurve]:
    """Nats per token by the number of tokens seen before."""

    def nll_text(index: int) -> Callable[[PositionCurve], str]:
        return lambda curve: f"{curve.nll[index].value:.2f}"

    columns = [Column[PositionCurve]("tokens seen before", lambda curve: curve.variant.name)]
    for i, (first, last) in enumerate(curves[0].bins):
        columns.append(Column(f"{first}-{last}", nll_text(i)))
    return Table(position_title(curves[0]), columns, curves, key="by_position", results=curves)


def position_title(curve: PositionCurve) -> str:
    """The title of tables and charts of the loss by position."""
    name = curve.records[0].estimator.name
    estimator = "" if name == "same-target" else f", estimator {name}"
    return f"Nats per token by position, at length {curve.seq_len:,}{estimator}"


def overview_tables(studies: Sequence[Study]) -> list[Table[Any]]:
    """All tasks of a variant in one table, for several tasks and several lengths."""
    if len(studies) < 2:
        return []
    variants = dict.fromkeys(v for study in studies for v in study.task.variants)
    tables = []
    for variant in variants:
        own_studies = [study for study in studies if study.task.select(variant)]
        records = [record for study in own_studies for record in study.task.select(variant)]
        if len(seq_lens(records)) > 1:
            tables.append(_overview_table(variant, own_studies, seq_lens(records)))
    return tables


def _overview_table(
    variant: Variant, studies: Sequence[Study], lengths: Sequence[int]
) -> Table[Study]:
    def cell(seq_len: int) -> Callable[[Study], str]:
        return lambda study: _overview_cell(variant, study.task.select(variant, seq_len))

    def effective(study: Study) -> str:
        if length := study.effective.get(variant):
            return f"{length.in_units_of(variant.window):.1f}"
        return f"{BASELINE} is 0" if study.baselines else f"no {BASELINE}"

    columns = [
        Column[Study]("task", lambda study: study.task.name),
        *(Column(f"{n:,}{'*' * (n > variant.window)}", cell(n)) for n in lengths),
        Column("effective context, windows", effective),
    ]
    title = (
        f"{variant.name}: % right [95 % interval]; c X of Y: not written, yet the right answer is "
        "chosen in X %, by chance in Y %"
    )
    return Table(title, columns, studies)


def _overview_cell(variant: Variant, records: Sequence[AnswerRecord]) -> str:
    if not records:
        return "-"
    scored = Scores(variant, records)
    value = scored.mean_score or scored.accuracy
    text = f"{value:.0f}"
    choice, chance = scored.choice, scored.chance
    mostly_wrong = value.high is not None and value.high < 50
    if not mostly_wrong or choice is None or chance is None:
        return text
    above_chance = choice.low is not None and choice.low > chance
    return f"{text} c {choice.value:.0f} of {chance:.0f}" if above_chance else text


def perplexity_numbers(title: str, entries: Sequence[Perplexity]) -> Table[Perplexity]:
    """Everything about entries that have scored tokens, for a chart."""

    def value(p: Perplexity) -> str:
        return f"{p.perplexity.value:.2f}" if p.perplexity else ""

    def bounds(p: Perplexity) -> str:
        return p.perplexity.bounds(".2f", ONE_DOCUMENT) if p.perplexity else ""

    columns = [
        Column[Perplexity]("variant", lambda p: p.variant.name),
        Column[Perplexity]("tokens", lambda p: f"{p.seq_len:,}"),
        Column("perplexity", value),
        Column("95 % interval", bounds),
        Column[Perplexity]("bits per byte", lambda p: f"{p.bits_per_byte:.3f}"),
        Column[Perplexity]("target tokens", lambda p: f"{p.count:,}"),
        Column[Perplexity]("documents", lambda p: str(p.num_documents)),
    ]
    return Table(title, columns, entries)


def position_numbers(title: str, curves: Sequence[PositionCurve]) -> Table[Any]:
    """Every bin of every curve with its interval, for a chart."""
    lines = [
        [
            curve.variant.name,
            f"{first:,}" if first == last else f"{first:,} to {last:,}",
            f"{nll.value:.3f}",
            nll.bounds(".3f", ONE_DOCUMENT),
            f"{count:,}",
        ]
        for curve in curves
        for (first, last), nll, count in zip(curve.bins, curve.nll, curve.counts, strict=True)
    ]
    header = ["variant", "tokens seen before", "nats per token", "95 % interval", "tokens"]
    return table_of_texts(title, header, lines)
