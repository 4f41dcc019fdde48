"""Evaluation records put into groups: which variants answered, and which tasks they were asked."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from ctxext.evals.power import effective_trials
from ctxext.evals.record import AnswerRecord, EvalRecord, EvaluatedModel, distinct_titles
from ctxext.evals.stats import Interval, wilson

T = TypeVar("T")
K = TypeVar("K")
Record = TypeVar("Record", bound=EvalRecord)


def latest(records: Iterable[Record]) -> list[Record]:
    """One record per model and item: the newest, at the place of the first."""
    return list({(record.model, record.item): record for record in records}.values())


def group(values: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Values by key; keys and values in order of appearance."""
    groups: dict[K, list[T]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return groups


@dataclass(frozen=True)
class Variant:
    """A model under a method, as it is called in this report."""

    model: EvaluatedModel
    checkpoint: str = field(default="", compare=False)
    """The name of its weights where the report has several; else ""."""

    @property
    def window(self) -> int:
        return self.model.window

    @property
    def trained(self) -> bool:
        return self.model.is_trained

    @property
    def is_base(self) -> bool:
        """Whether it is a base as it is: neither trained nor under a method."""
        return self.model.is_plain and not self.trained

    @property
    def name(self) -> str:
        """Its name in tables, such as "yarn(factor=4), 60 steps at 1024"."""
        return self.model.label + self.suffix

    @property
    def phrase(self) -> str:
        """Its name in a sentence, such as "yarn(factor=4) after 60 steps"."""
        return self.model.phrase + self.suffix

    @property
    def suffix(self) -> str:
        """The checkpoint in parentheses, where it is needed."""
        return f" ({self.checkpoint})" if self.checkpoint else ""


def variants(records: Iterable[EvalRecord]) -> list[Variant]:
    """Every model among the records, in order of appearance."""
    models = list(dict.fromkeys(record.model for record in records))
    several = len({model.checkpoint for model in models}) > 1
    names = Counter((model.label, model.checkpoint) for model in models)

    def checkpoint(model: EvaluatedModel) -> str:
        if names[model.label, model.checkpoint] > 1:  # other weights under the same name
            return f"{model.checkpoint} {model.weights[:8]}".strip()
        return model.checkpoint if several else ""

    return [Variant(model, checkpoint(model)) for model in models]


def is_base_of(base: EvaluatedModel, model: EvaluatedModel) -> bool:
    """Whether `base` is `model` without its method: the same weights, or the same training."""

    def training(m: EvaluatedModel) -> tuple[Any, ...]:
        return m.checkpoint, m.steps, m.adapter, m.dtype, m.bos

    has_same_weights = model.is_trained or base.weights == model.weights
    is_alike = training(base) == training(model) and has_same_weights
    return base.is_plain and not model.is_plain and is_alike


def accuracy(records: Sequence[AnswerRecord]) -> Interval:
    """The share of right answers with its Wilson interval, see `share`."""
    return share([record.scores.correct for record in records], records)


def share(hits: Sequence[bool | None], records: Sequence[AnswerRecord]) -> Interval:
    """The share of hits with its Wilson interval, by the effective sample size.

    Questions about one text are not independent.
    """
    counted = [bool(hit) for hit in hits]
    trials = effective_trials(counted, [record.cluster.text for record in records])
    return wilson(sum(counted), len(counted), effective_trials=trials)


def num_correct(records: Iterable[AnswerRecord]) -> int:
    """The number of right answers."""
    return sum(record.scores.correct for record in records)


def documents(records: Iterable[EvalRecord]) -> list[int | str]:
    """The document of each record: the unit that intervals resample."""
    return [record.cluster.document for record in records]


def seq_lens(records: Iterable[EvalRecord]) -> list[int]:
    """The nominal lengths, ascending."""
    return sorted({record.seq_len for record in records})


@dataclass(frozen=True, eq=False)
class TaskResults:
    """One task with its settings: the answers to its questions, and to their controls."""

    name: str
    """The task, with its settings where the same task was asked in several ways."""
    task: str
    settings: str
    records: list[AnswerRecord]
    controls: list[AnswerRecord]
    variants: list[Variant]

    @cached_property
    def seq_lens(self) -> list[int]:
        return seq_lens(self.records)

    @property
    def longest(self) -> int:
        return self.seq_lens[-1]

    @property
    def window(self) -> int:
        return self.records[0].model.window

    @property
    def has_depth(self) -> bool:
        """Whether every question is about one place of its text."""
        return all(record.question.depth is not None for record in self.records)

    def select(self, variant: Variant, seq_len: int | None = None) -> list[AnswerRecord]:
        """The answers of a variant, at one length or at all."""
        return _select(self.records, variant, seq_len)

    def select_controls(
        self, variant: Variant, condition: str, seq_len: int | None = None
    ) -> list[AnswerRecord]:
        """A variant's answers to one kind of control, at one length or at all."""
        records = [r for r in self.controls if r.question.condition == condition]
        return _select(records, variant, seq_len)


def _select(
    records: Iterable[AnswerRecord], variant: Variant, seq_len: int | None
) -> list[AnswerRecord]:
    return [r for r in records if r.model == variant.model and seq_len in (None, r.seq_len)]


def answers(records: Iterable[EvalRecord]) -> list[AnswerRecord]:
    """The newest answers among records; those about perplexity are left out."""
    return latest(record for record in records if isinstance(record, AnswerRecord))


def is_control(record: AnswerRecord) -> bool:
    """Whether the text lacks its needle, or the needle its text."""
    return record.question.condition != "needle"


def task_results(records: Sequence[EvalRecord]) -> list[TaskResults]:
    """The tasks among the records.

    Controls belong to the task with their settings, else to one with the same name and fields.
    """
    names = {variant.model: variant for variant in variants(records)}
    all_answers = answers(records)
    by_settings = group(
        (r for r in all_answers if not is_control(r)), lambda record: record.settings
    )
    # The first settings of a task win, so that they are written last.
    settings_of = {_task(own[0]): key for key, own in reversed(by_settings.items())}
    controls: dict[str | None, list[AnswerRecord]] = {}
    for record in filter(is_control, all_answers):
        has_task = record.settings in by_settings
        key = record.settings if has_task else settings_of.get(_task(record))
        controls.setdefault(key, []).append(record)
    titles = distinct_titles(
        (own[0] for own in by_settings.values()), lambda record: record.question.title
    )
    return [
        TaskResults(
            titles[settings],
            own[0].question.task,
            settings,
            own,
            controls.get(settings, []),
            [names[model] for model in dict.fromkeys(record.model for record in own)],
        )
        for settings, own in by_settings.items()
    ]


def _task(record: AnswerRecord) -> tuple[str, str]:
    """The task with its fields, as a key."""
    return record.question.task, json.dumps(record.question.fields, sort_keys=True)


def labels(record: EvalRecord) -> dict[str, Any]:
    """Entries that name a result in JSON: settings, model and length."""
    return {
        "settings": record.settings,
        "checkpoint": record.model.checkpoint,
        "method": record.model.label,
        "seq_len": record.seq_len,
        "window": record.model.window,
        "beyond_window": record.beyond_window,
    }
