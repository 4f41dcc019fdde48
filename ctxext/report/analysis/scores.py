"""How well a variant answered the questions of one length, with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ctxext.evals.power import LEVEL, effective_trials, icc, least_p
from ctxext.evals.record import AnswerRecord
from ctxext.evals.stats import Interval, ratio_interval, wilson
from ctxext.report.analysis.records import (
    Variant,
    accuracy,
    documents,
    group,
    is_control,
    labels,
    num_correct,
    share,
)

FRACTIONAL = ("f1", "all")
"""Metrics whose score may lie between 0 and 1."""


def are_too_few_texts(num_texts: int, n: int) -> bool:
    """Whether `n` questions share so few texts that nothing shows how far their answers agree.

    So few that no exact test over texts can be significant: five or fewer.
    """
    return num_texts < n and least_p(num_texts) > LEVEL


@dataclass(frozen=True, eq=False)
class Scores:
    """The answers of one variant at one length under one condition, and what follows from them."""

    variant: Variant
    records: Sequence[AnswerRecord]

    @property
    def seq_len(self) -> int:
        return self.records[0].seq_len

    @property
    def condition(self) -> str:
        return self.records[0].question.condition

    @property
    def n(self) -> int:
        return len(self.records)

    @property
    def texts(self) -> list[str]:
        """The text that each question is about."""
        return [record.cluster.text for record in self.records]

    @property
    def num_texts(self) -> int:
        """How many texts were read for the questions."""
        return len(set(self.texts))

    @cached_property
    def effective_n(self) -> float:
        """How many independent questions, with a text each, they amount to (`effective_trials`)."""
        return effective_trials([record.scores.correct for record in self.records], self.texts)

    @property
    def independent(self) -> tuple[float, float]:
        """The least and the most independent questions that they may amount to.

        Of too few texts, one per text and all; else the estimate, twice. Without any correlation to
        estimate, each text counts as one.
        """
        if are_too_few_texts(self.num_texts, self.n) and self.icc is not None:
            return self.num_texts, self.n
        return self.effective_n, self.effective_n

    @cached_property
    def icc(self) -> float | None:
        """How alike the answers about one text are; None where they do not show it.

        Below 0, they differ more than answers about different texts, as those of other depths do.
        """
        if self.num_texts in (1, self.n) or self.correct in (0, self.n):
            return None
        return icc([record.scores.correct for record in self.records], self.texts)

    @property
    def correct(self) -> int:
        return num_correct(self.records)

    @property
    def num_chosen(self) -> int:
        """How often the right answer was the most likely of several."""
        return sum(bool(record.scores.chosen) for record in self.records)

    @cached_property
    def rate(self) -> Interval:
        """The share of right answers with its Wilson interval."""
        return accuracy(self.records)

    @property
    def accuracy(self) -> Interval:
        """The same in percent."""
        return self.rate.scaled(100)

    @cached_property
    def mean_score(self) -> Interval | None:
        """Percent of the full score, with a t interval over documents.

        None where the metric knows 0 and 1 only.
        """
        if not all(record.scores.metric in FRACTIONAL for record in self.records):
            return None
        values = [record.scores.score for record in self.records]
        if len(set(values)) == 1:  # a t interval of equal scores would claim certainty
            num_texts = len({record.cluster.text for record in self.records})
            return wilson(sum(values), self.n, effective_trials=num_texts).scaled(100)
        mean = ratio_interval(values, [1] * self.n, documents(self.records))
        return mean.clipped(0, 1).scaled(100)

    @cached_property
    def choice(self) -> Interval | None:
        """Percent where the right answer is the most likely of several, with a Wilson interval."""
        if not all(record.scores.choices > 1 for record in self.records):
            return None
        return share([record.scores.chosen for record in self.records], self.records).scaled(100)

    @property
    def chance(self) -> float | None:
        """Percent that choosing at random gives: the mean of 1/K."""
        return chance_level(self.records)

    @cached_property
    def nll(self) -> Interval:
        """Mean nats per token of the right answer, with a t interval over documents."""
        losses = [record.scores.answer_nll for record in self.records]
        return ratio_interval(losses, [1] * self.n, documents(self.records)).clipped(0)

    @property
    def answer_probability(self) -> float:
        """The mean probability of the right answer."""
        return sum(record.scores.answer_probability for record in self.records) / self.n

    def to_json(self) -> dict[str, Any]:
        first = self.records[0]
        value, low, high = self.rate
        measures = {"score": self.mean_score, "choice": self.choice, "nats": self.nll}
        return {
            "task": first.question.task,
            **({"condition": self.condition} if is_control(first) else {}),
            **labels(first),
            "correct": self.correct,
            "n": self.n,
            "texts": self.num_texts,
            "effective_n": self.effective_n,
            "rate": value,
            "low": low,
            "high": high,
            "answer_probability": self.answer_probability,
            "answer_nll": sum(record.scores.answer_nll for record in self.records) / self.n,
            **{name: x._asdict() for name, x in measures.items() if x is not None},
            **({} if self.chance is None else {"chance": self.chance}),
        }


def scores(records: Sequence[AnswerRecord], variants: Sequence[Variant]) -> list[Scores]:
    """One entry per settings, variant, length and condition, in order of appearance."""
    by_model = {variant.model: variant for variant in variants}
    cells = group(records, lambda r: (r.settings, r.model, r.seq_len, r.question.condition))
    return [Scores(by_model[model], cell) for (_, model, _, _), cell in cells.items()]


def chance_level(records: Sequence[AnswerRecord]) -> float | None:
    """Percent by choosing at random, the mean of 1/K; None with nothing to choose from."""
    choices = [record.scores.choices for record in records]
    return 100 * sum(1 / k for k in choices) / len(choices) if min(choices) > 1 else None
