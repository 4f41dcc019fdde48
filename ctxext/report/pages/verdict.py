"""The verdict in words: sentences that follow from records, left out where data are missing."""

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ctxext.evals.power import least_p
from ctxext.evals.record import AnswerRecord, EvalRecord
from ctxext.evals.stats import EffectiveLength, Interval
from ctxext.report.analysis.comparisons import ALPHA, Comparison, paired_points, pairs
from ctxext.report.analysis.distances import by_reach, guessed, right_of
from ctxext.report.analysis.growing_window import differences_to_base
from ctxext.report.analysis.pooling import seeds_of
from ctxext.report.analysis.records import TaskResults, Variant, seq_lens
from ctxext.report.analysis.recovery import recovery_differences
from ctxext.report.analysis.results import Results
from ctxext.report.analysis.scores import are_too_few_texts
from ctxext.report.analysis.study import THRESHOLD, Baseline, Study, find_comparison
from ctxext.report.pages.growing_window import against_base_sentence, growing_window_sentence
from ctxext.report.pages.recovery import recovery_difference_sentence, recovery_sentences
from ctxext.terminal import printable_line

BASE = "the base as it is"
"""How an untrained model is called that a method is compared with."""
UNKNOWN = "Effective context unknown"
"""Begins a headline about a variant whose reach retrieval does not show."""
LAST_WINDOW_NOT_ASKED = (
    "That a loss stays low along a text does not show that what is farther back than one window is "
    "used: the same tokens with only the last window before them were not asked; `--evals ppl` "
    "does that."
)
Topic = Literal["does it work", "how far", "compared with what", "how sure"]


class Finding(NamedTuple):
    """A sentence of the verdict, and the question that it answers."""

    topic: Topic
    sentence: str
    main: bool = True
    """False for variants other than the best, and for tasks other than the first."""
    is_of_books: bool = False
    """True for the loss of books against that of the base."""


def verdict(records: Iterable[EvalRecord]) -> list[str]:
    """Does it work, how far, compared with what, how sure: a sentence each, the answer first."""
    return [printable_line(finding.sentence) for finding in findings(Results(records))]


def findings(results: Results) -> list[Finding]:
    """The verdict on all retrieval tasks, by task; p-values are adjusted over all of them."""
    if not results.records:
        return [Finding("does it work", "There are no records: nothing was evaluated.")]
    if not results.studies:
        sentence = (
            "No retrieval task was asked; perplexity alone does not show how much context a model "
            "uses."
        )
        return [Finding("does it work", sentence), *_of_texts(results)]
    num_comparisons = sum(map(len, results.comparisons))
    verdicts = [
        _TaskVerdict(study, comparisons, num_comparisons)
        for study, comparisons in zip(results.studies, results.comparisons, strict=True)
    ]
    if len(verdicts) == 1:
        return _answer_first([*verdicts[0].findings(), *_of_texts(results)])
    of_tasks = [
        Finding(
            finding.topic,
            f"{task_verdict.study.task.name}: {finding.sentence}",
            finding.main and task_verdict is verdicts[0],
        )
        for task_verdict in verdicts
        for finding in task_verdict.findings()
        if finding.topic != "does it work"
    ]
    # What holds for several tasks is said once.
    names_by_headline: dict[str, list[str]] = {}
    for task_verdict in verdicts:
        names = names_by_headline.setdefault(task_verdict.headline(), [])
        names.append(task_verdict.study.task.name)
    return _answer_first(
        [
            *(
                Finding("does it work", f"{_enumeration(names)}: {headline}")
                for headline, names in names_by_headline.items()
            ),
            *of_tasks,
            *_of_texts(results),
        ]
    )


def _answer_first(found: Sequence[Finding]) -> list[Finding]:
    """The same, and where retrieval answers nothing, what books show is the first answer."""
    headlines = [finding for finding in found if finding.topic == "does it work"]
    if not all(UNKNOWN in finding.sentence for finding in headlines):
        return list(found)
    answers = [f._replace(topic="does it work") for f in found if f.is_of_books and f.main]
    return [*answers, *(f for f in found if not (f.is_of_books and f.main))]


def _of_texts(results: Results) -> list[Finding]:
    """What the loss of books and recovery show: trained variants first where there are any."""
    by_variant = [
        (entry.variant, growing_window_sentence(entry)) for own in results.books for entry in own
    ]
    by_variant += [pair for own in results.recovery for pair in recovery_sentences(own)]
    any_trained = any(variant.trained for variant, _ in by_variant)
    found = [
        Finding("how far", sentence, variant.trained or not any_trained)
        for variant, sentence in _controls_last(by_variant)
    ]
    for own in results.books:
        for difference in differences_to_base(own):
            variant = difference.b.variant
            sentence = against_base_sentence(difference, _without_method(variant))
            if sentence:
                is_main = variant.trained or not any_trained
                found.append(Finding("compared with what", sentence, is_main, is_of_books=True))
    for own in results.recovery:
        for change in recovery_differences(own):
            variant = change.b.variant
            sentence = recovery_difference_sentence(change, _without_method(variant))
            is_main = variant.trained or not any_trained
            found.append(Finding("compared with what", sentence, is_main))
    notes = [*_unused_control(results), *model_notes(results.variants)]
    return [*found, *(Finding("how sure", sentence) for sentence in notes)]


def _unused_control(results: Results) -> list[str]:
    """What the loss along books leaves open where no perplexity was measured."""
    is_beyond = any(entry.beyond for own in results.books for entry in own)
    if not is_beyond or any(record.evaluation.startswith("ppl") for record in results.records):
        return []
    return [LAST_WINDOW_NOT_ASKED]


def model_notes(variants: Iterable[Variant]) -> list[str]:
    """What holds for the models themselves: quantized weights, and texts without BOS."""
    models = [variant.model for variant in variants]
    quantized = dict.fromkeys((m.checkpoint, m.quantized) for m in models if m.quantized)
    notes = [
        f"{name} was read from a quantized file ({types}): these are results of rounded weights."
        for name, types in quantized
    ]
    unknown = "the tokenizer adds none, or --no-bos was given"
    reasons = dict.fromkeys(m.without_bos or unknown for m in models if not m.bos)
    notes += [
        f"Without BOS: texts began without a token that marks their beginning, as {reason}."
        for reason in reasons
    ]
    return notes


def _controls_last(by_variant: Sequence[tuple[Variant, str]]) -> list[tuple[Variant, str]]:
    """The sentences about variants: a base next to methods comes last and is called a control."""
    of_methods = [pair for pair in by_variant if not pair[0].is_base]
    of_bases = [pair for pair in by_variant if pair[0].is_base]
    if of_methods:
        of_bases = [(base, f"Control: {sentence}") for base, sentence in of_bases]
    return [*of_methods, *of_bases]


@dataclass(frozen=True)
class _TaskVerdict:
    """The sentences about one task."""

    study: Study
    comparisons: Sequence[Comparison]
    num_comparisons: int
    """Of all tasks: the family that p-values are adjusted in."""

    def findings(self) -> list[Finding]:
        """Every sentence with its topic, the headline first."""
        return [
            Finding("does it work", self.headline()),
            *(Finding("how far", sentence) for sentence in self.effective_contexts()),
            *self.against_unscaled(),
            *self.against_base(),
            *self.where_right(),
            *self.inside_window(),
            *(Finding("compared with what", sentence) for sentence in self.against_best()),
            *self.against_zero_shot(),
            *(Finding("how sure", sentence) for sentence in self.limits()),
        ]

    def headline(self) -> str:
        """Does the best variant read beyond the window, and better than by training alone?"""
        best = self.study.best
        if best is not None:
            return f"{reads_beyond_window(self.study, best)} {self.best_against_unscaled(best)}"
        untrained = self.study.best_untrained
        if untrained is None or any(variant.trained for variant in self.study.task.variants):
            return no_trained_method(self.study)
        sentences = [reads_beyond_window(self.study, untrained)]
        base = self.study.base_of(untrained)
        comparison = find_comparison(self.comparisons, base, untrained)
        if comparison is not None and untrained in self.study.effective:
            sentences.append(self.accuracy_against(comparison, BASE))
        return " ".join([*sentences, no_trained_method(self.study)])

    def best_against_unscaled(self, best: Variant) -> str:
        """Is the best variant more accurate than the same training without scaling?"""
        comparison = find_comparison(self.comparisons, self.study.unscaled(best), best)
        other = f"the same training {_without_method(best)}"
        if comparison is None:
            return f"{other.capitalize()} is not available for comparison."
        return self.accuracy_against(comparison, other)

    def accuracy_against(self, comparison: Comparison, other: str) -> str:
        """Is the variant that the headline is about more accurate than another one?"""
        tokens = f"{self.study.task.longest:,} tokens"
        if not comparison.significant:
            return (
                f"At {tokens}, its accuracy does not differ significantly from that of {other} "
                f"({self.detectable(comparison)})."
            )
        better = "more" if comparison.points.value > 0 else "less"
        return f"At {tokens}, it is {better} accurate than {other}."

    def effective_contexts(self) -> list[str]:
        """Of every trained variant, or of all where none was trained, the longest first."""
        lengths = self.study.effective
        variants = [v for v in self.study.trained or lengths if v in lengths]
        variants.sort(key=lambda variant: -lengths[variant].value)
        by_variant = [(v, effective_context_text(v, lengths[v])) for v in variants]
        return [sentence for _, sentence in _controls_last(by_variant)]

    def against_unscaled(self) -> list[Finding]:
        """Every trained variant with a method, against the same training without one."""
        sentences = []
        for variant in self.study.trained:
            comparison = find_comparison(self.comparisons, self.study.unscaled(variant), variant)
            if comparison is None or variant.model.is_plain:
                continue
            sentence = self.tested(comparison, f"the same training {_without_method(variant)}")
            sentences.append(Finding("compared with what", sentence, variant == self.study.best))
        return sentences

    def against_base(self) -> list[Finding]:
        """Where nothing was trained, every method against the base as it is."""
        sentences = []
        for variant in self.study.zero_shot_methods:
            comparison = find_comparison(self.comparisons, self.study.base_of(variant), variant)
            if comparison is not None:
                is_main = variant == self.study.best_untrained
                finding = Finding("compared with what", self.tested(comparison, BASE), is_main)
                sentences.append(finding)
        return sentences

    def where_right(self) -> list[Finding]:
        """Where the needles of right answers are, for every compared method beyond its window."""
        compared = {v for comparison in self.comparisons for v in (comparison.a, comparison.b)}
        main = self.study.best or self.study.best_untrained
        return [
            Finding("compared with what", sentence, variant == main)
            for variant in [*self.study.trained, *self.study.zero_shot_methods]
            if variant in compared and not variant.model.is_plain
            if (sentence := where_right_text(self.study.task, variant))
        ]

    def inside_window(self) -> list[Finding]:
        """What every compared method costs at lengths up to its window."""
        main = self.study.best or self.study.best_untrained
        found = []
        for variant in [*self.study.trained, *self.study.zero_shot_methods]:
            is_trained = variant.trained
            other = self.study.unscaled(variant) if is_trained else self.study.base_of(variant)
            if other is None or variant.model.is_plain:
                continue
            name = f"the same training {_without_method(variant)}" if is_trained else BASE
            sentence = inside_window_text(self.study.task, variant, other, name)
            if sentence:
                found.append(Finding("compared with what", sentence, variant == main))
        return found

    def tested(self, comparison: Comparison, other: str) -> str:
        """The counts of both, their difference with its interval, and its p-values."""
        sentence = f"{counts_text(comparison, other)}, exact {p_text(comparison.p)}"
        if self.num_comparisons > 1:
            family = f"{self.num_comparisons} comparisons"
            sentence += f", {adjusted_p_text(comparison)} over {family}"
        least = least_p(comparison.num_texts)
        if least > ALPHA:
            few = f"{comparison.num_texts} text{'s' * (comparison.num_texts != 1)}"
            sentence += f" (the test cannot give less than {least:.2g} with {few})"
        return f"{sentence}."

    def against_best(self) -> list[str]:
        """The other trained methods: those that the best one beats, and those that it does not."""
        best = self.study.best
        if best is None:
            return []
        worse = []
        not_different = []
        for other in self.study.trained:
            comparison = find_comparison(self.comparisons, best, other)
            if comparison is None or other.model.is_plain:
                continue
            difference = f"{points_text(comparison.points)}, {adjusted_p_text(comparison)}"
            if comparison.significant:
                worse.append(f"{other.phrase} ({difference})")
            else:
                detectable = self.detectable(comparison)
                not_different.append(f"{other.phrase} ({difference}; {detectable})")
        sentences = []
        if worse:
            sentences.append(f"Less accurate than the best, {best.phrase}: {'; '.join(worse)}.")
        if not_different:
            sentences.append(
                f"Not significantly different from the best, {best.phrase}: "
                f"{'; '.join(not_different)}."
            )
        return sentences

    def against_zero_shot(self) -> list[Finding]:
        """Every trained variant, against the same method without training."""
        sentences = []
        main = self.study.best or next(iter(self.study.trained), None)
        for variant in self.study.trained:
            comparison = find_comparison(self.comparisons, self.study.zero_shot(variant), variant)
            if comparison is None:
                continue
            counts = counts_text(comparison, _without_training(variant))
            effect = self.effect_of_training(comparison)
            sentence = f"{counts}, {adjusted_p_text(comparison)}: {effect}."
            sentences.append(Finding("compared with what", sentence, variant == main))
        return sentences

    def effect_of_training(self, comparison: Comparison) -> str:
        """Does training, or an adapter, help a method?"""
        what = "the adapter" if comparison.b.model.adapter else "training"
        if not comparison.significant:
            return f"{what} makes no significant difference ({self.detectable(comparison)})"
        return f"{what} helps" if comparison.points.value > 0 else f"{what} hurts"

    def detectable(self, comparison: Comparison) -> str:
        """The minimum detectable difference of a comparison that shows none."""
        points = comparison.minimum_detectable(self.num_comparisons)
        if points > 100:
            return "no difference could have been detected"
        # Rounding errors do not make 21 points of 20.
        return f"minimum detectable difference {math.ceil(points - 1e-9)} points"

    def limits(self) -> list[str]:
        """How much was asked, what the threshold is, and what intervals do not cover."""
        sentences = [questions_text(self.study)]
        several = len(self.study.baselines) > 1
        for baseline in self.study.baselines:
            sentences.append(baseline_text(baseline, named=several))
        if not self.study.baselines:
            sentences.append(
                "The base model as it is was not asked at its window: there is no threshold "
                "and no effective context."
            )
        if self.comparisons:
            sentences.append(effective_sample_text(self.comparisons))
        if self.study.trained:
            sentences.append(training_chance_text(self.study))
        return sentences


def training_chance_text(study: Study) -> str:
    """What intervals say about chance in training."""
    seeds = [seeds_of(study.task.select(variant)) for variant in study.trained]
    if not any(seeds):
        single = "every trained variant is a single run"
    else:
        most = ", ".join(map(str, max(seeds, key=len)))
        single = f"variants pool the training seeds {most}; the table by seed shows how they differ"
        if not all(seeds):
            single += ", and some variants are a single run"
    return f"Intervals cover chance in questions and texts, but not in training: {single}."


def _without_method(variant: Variant) -> str:
    """How the variant is called that a method is compared with."""
    if variant.model.base_rope == "none":
        return "without scaling"
    return f"with the base's own {variant.model.base_rope}"


def no_trained_method(study: Study) -> str:
    """The headline where no trained variant has a method."""
    if any(variant.trained for variant in study.task.variants):
        return f"No trained variant with a method was asked at {study.task.longest:,} tokens."
    if any(variant.model.train_seq_len is None for variant in study.task.variants):
        return "Nothing was trained here: every variant has the weights of its checkpoint."
    return "Nothing was trained here: these are zero-shot results."


def reads_beyond_window(study: Study, variant: Variant) -> str:
    """Is the effective context longer than the window?"""
    length = study.effective.get(variant)
    if length is None:
        return f"{UNKNOWN}: {_why_unknown(study, variant)}."
    if length.low > variant.window:
        return f"Yes: {variant.phrase} reads beyond the window."
    return f"Not shown: it is not certain that {variant.phrase} reads beyond the window."


def _why_unknown(study: Study, variant: Variant) -> str:
    """The reason why a variant has no effective context, and how to ask for one."""
    baseline = study.baseline(variant)
    if baseline is None and variant.model.is_plain and not variant.trained:
        return f"the base was not asked at its window; add it (`--seq-len {variant.window}`)"
    if baseline is None:
        return (
            f"{variant.phrase} has no in-window baseline to measure how far it reads; ask the base "
            f"as it is at its window too (`--seq-len {variant.window}`)"
        )
    if baseline.is_weak:
        right = "no right answers"
        if baseline.correct:
            answers = f"right answer{'s' * (baseline.correct != 1)}"
            right = (
                f"{baseline.correct} {answers} of {len(baseline.records)}, too few to measure how "
                f"far {variant.phrase} reads"
            )
        checkpoint = baseline.variant.model.checkpoint
        command = f"ctxext eval {shlex.quote(checkpoint)} " if checkpoint else ""
        return (
            f"at its window of {baseline.variant.window:,} tokens, the base as it is has {right}; "
            f"see whether it can answer another task, `{command}--evals niah lines`, or another "
            "wording"
        )
    return f"{variant.phrase} was asked at a single length"


def effective_context_text(variant: Variant, length: EffectiveLength) -> str:
    """Such as: yarn after 60 steps: effective context 3.4x the window (95 % CI 3.0 to 4.0)."""
    windows = length.in_units_of(variant.window)
    low = "< " if windows.censored == "<" else ""
    high = "> " if windows.censored == ">" else ""
    return (
        f"{variant.phrase}: effective context {windows.estimate('.1f')}x the window "
        f"(95 % CI {low}{windows.low:.1f} to {high}{windows.high:.1f})."
    )


def _without_training(variant: Variant) -> str:
    """The variant to compare a trained one with: the same method before its training."""
    return "the same method without it" if variant.model.adapter else "the same method zero-shot"


def counts_text(comparison: Comparison, other: str) -> str:
    """Such as: yarn after 60 steps: 16/20 correct against 0/20 for ..., +80 points."""
    n = comparison.n
    return (
        f"{comparison.b.phrase}: {comparison.correct_b}/{n} correct against "
        f"{comparison.correct_a}/{n} for {other}, {points_text(comparison.points)}"
    )


def where_right_text(task: TaskResults, variant: Variant) -> str:
    """Right answers by the distance of the needle at the longest length; "" if it is not known."""
    split = by_reach(task.select(variant, task.longest))
    if split is None:
        return ""
    places = [
        (
            split.within,
            f"with the needle within one window ({variant.window:,} tokens) of the question",
        ),
        (split.farther, "with the needle farther away"),
    ]
    parts = [f"{right_of(own)} {place}{_guess_text(own)}" for own, place in places if own]
    if not split.farther:
        parts.append("no needle was farther away")
    return f"{variant.phrase} at {task.longest:,} tokens, right answers: {', '.join(parts)}."


def inside_window_text(task: TaskResults, variant: Variant, other: Variant, name: str) -> str:
    """Differences at the lengths up to the window; "" where both were asked beyond it only.

    name: of the other variant. The longest length is compared elsewhere.
    """
    differences = {}
    for seq_len in task.seq_lens:
        both = pairs(task.select(other, seq_len), task.select(variant, seq_len))
        if both and seq_len <= variant.window and seq_len < task.longest:
            differences[seq_len] = paired_points(both)
    if not differences:
        return ""
    by_length = [f"{points.value:+z.0f} at {n:,}" for n, points in differences.items()]
    shown = [
        f"{n:,}"
        for n, (_, low, high) in differences.items()
        if low is not None and high is not None and not low <= 0 <= high
    ]
    if shown:
        certainty = f"the 95 % interval excludes 0 at {_enumeration(shown)}"
    else:
        certainty = "no 95 % interval excludes 0"
    return (
        f"{variant.phrase} inside its window, against {name}: {_enumeration(by_length)} tokens, in "
        f"percentage points; {certainty}."
    )


def _guess_text(records: Sequence[AnswerRecord]) -> str:
    by_guessing = guessed(records)
    if by_guessing is None:
        return ""
    return f" (a guess among the text's values: {by_guessing:.1f})".replace(".0)", ")")


def points_text(points: Interval) -> str:
    """Such as: +68 points, 95 % CI +52 to +80."""
    text = f"{points.value:+z.0f} points"
    if points.low is None or points.high is None:
        return text
    return f"{text}, 95 % CI {points.low:+z.0f} to {points.high:+z.0f}"


def p_text(p: float, name: str = "p") -> str:
    """Such as: p = 0.012; p < 0.0001."""
    return f"{name} < 0.0001" if p < 0.0001 else f"{name} = {p:.2g}"


def adjusted_p_text(comparison: Comparison) -> str:
    """Such as: Holm-adjusted p = 0.012."""
    return p_text(comparison.adjusted_p, "Holm-adjusted p")


def questions_text(study: Study) -> str:
    """How many questions of which kind were asked at which lengths."""
    task = study.task
    depths = len({record.question.depth for record in task.records})
    lengths = _enumeration([f"{n:,}" for n in task.seq_lens])
    shorter = [
        f"{variant.phrase} at {_enumeration([f'{n:,}' for n in of_variant])} only"
        for variant in task.variants
        if (of_variant := seq_lens(task.select(variant))) and of_variant != task.seq_lens
    ]
    who = "Variants were" if shorter else "Every variant was"
    sentence = (
        f"{who} asked {_num_questions_text(task)} questions ({task.task}, {depths} "
        f"depth{'s' * (depths != 1)}) at each of {lengths} tokens"
    )
    if shorter:
        sentence += f", {'; '.join(shorter)}"
    if study.trained or any(study.base_of(variant) for variant in study.zero_shot_methods):
        sentence += f"; differences are at {task.longest:,} tokens"
    return f"{sentence}."


def _num_questions_text(task: TaskResults) -> str:
    counts = {len(task.select(v, n)) for v in task.variants for n in task.seq_lens} - {0}
    fewest, most = min(counts), max(counts)
    return str(most) if fewest == most else f"{fewest} to {most}"


def baseline_text(baseline: Baseline, *, named: bool) -> str:
    """The in-window baseline, with its checkpoint if `named`, and the threshold."""
    checkpoint = f" of {baseline.variant.model.checkpoint}" if named else ""
    if baseline.is_weak:
        few = ", fewer than half" if baseline.correct else ""
        return (
            f"The in-window baseline{checkpoint} is {baseline.text}{few}: there is no threshold "
            "and no effective context."
        )
    return f"The threshold is {THRESHOLD:g} of the in-window baseline{checkpoint}, {baseline.text}."


def effective_sample_text(comparisons: Sequence[Comparison]) -> str:
    """How many independent pairs the comparisons amount to."""
    n = max(c.n for c in comparisons)
    num_texts = min(c.num_texts for c in comparisons)
    if are_too_few_texts(num_texts, n):
        return (
            f"{n} pairs are about {num_texts} texts, too few to tell how far answers about one "
            f"text go together: they count as {num_texts} to {n} independent ones."
        )
    low = round(min(c.effective_n for c in comparisons))
    high = round(max(c.effective_n for c in comparisons))
    if low == high:
        return f"The effective sample size of {n} pairs is {low}."
    return (
        f"Answers about the same document are correlated: the effective sample size of {n} pairs "
        f"is {low} to {high}."
    )


def _enumeration(items: Sequence[str]) -> str:
    """Such as: a, b and c."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
