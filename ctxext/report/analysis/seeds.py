"""Runs that differ only in their training seed, combined: counts by seed, differences over all."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctxext.evals.record import AnswerRecord, EvaluatedModel
from ctxext.evals.stats import Interval
from ctxext.report.analysis.comparisons import paired_points, pairs
from ctxext.report.analysis.pooling import without_number
from ctxext.report.analysis.records import (
    TaskResults,
    accuracy,
    answers,
    group,
    num_correct,
    task_results,
)
from ctxext.report.analysis.runs import RunData, read_run

BySeed = dict[int, list[AnswerRecord]]
TRAINING = ("init", "data", "optim", "train", "positions", "trainable", "loss")
"""Fields of an experiment that decide its training, besides its seed and its method."""


@dataclass(frozen=True)
class SeedVariant:
    """One method with one training, under several seeds."""

    name: str
    correct: dict[int, dict[int, int]]
    """length -> seed -> right answers."""
    num_asked: dict[int, int]
    """length -> questions per seed."""
    rate: Interval
    """Percent at the longest length; the answers of all seeds to one question are a cluster."""
    over_plain: Interval | None
    """Percentage points over plain fine-tuning, over documents; None for that itself."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "right": self.correct,
            "asked": self.num_asked,
            "rate": self.rate._asdict(),
            "over_plain": self.over_plain and self.over_plain._asdict(),
        }


@dataclass(frozen=True)
class Twins:
    """One method trained in two ways: points of b over a at the longest length."""

    a: str
    b: str
    points: Interval

    def to_json(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "points": self.points._asdict()}


@dataclass(frozen=True)
class SeedResults:
    """A retrieval task answered by the same variants under several training seeds."""

    task: str
    seeds: tuple[int, ...]
    plain: str
    """The variant that was trained without scaling."""
    variants: tuple[SeedVariant, ...]
    """The best first."""
    twins: tuple[Twins, ...]

    @property
    def seq_lens(self) -> list[int]:
        return sorted({n for variant in self.variants for n in variant.num_asked})

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "seeds": self.seeds,
            "plain": self.plain,
            "variants": [variant.to_json() for variant in self.variants],
            "twins": [twins.to_json() for twins in self.twins],
        }


def across_seeds(paths: Sequence[Path]) -> list[SeedResults]:
    """The tasks of runs; the variants at the end of their training only, the best first.

    Raises ValueError for fewer than two seeds, for a seed given twice with the same variant,
    without a variant that was trained plainly (no scaling), or if the seeds of a variant were asked
    different questions.
    """
    records: list[AnswerRecord] = []
    holders: dict[EvaluatedModel, Path] = {}
    runs = [read_run(path) for path in paths]
    names = _names_of_trainings(runs)
    for run in runs:
        path = run.path
        if "seed" not in run.config:
            raise ValueError(f"{path} has no config.json with a seed; give run directories")
        seed = run.config["seed"]
        # The seed takes the place of the checkpoint's name, and what tells trainings of one method
        # apart that of the weights.
        trained = []
        for record in answers(run.records):
            if _is_end_of_training(record.model, run):
                name = names.get((_without_seed(record.model), _training(run)), "")
                model = dataclasses.replace(record.model, checkpoint=str(seed), weights=name)
                trained.append(dataclasses.replace(record, model=model))
        for model in dict.fromkeys(record.model for record in trained):
            if other := holders.get(model):
                raise ValueError(
                    f"{other} and {path} both have {_name(model)!r} with seed {seed}; give only one"
                )
            holders[model] = path
        records += trained
    return [_combine(task) for task in task_results(records)]


def _names_of_trainings(runs: Sequence[RunData]) -> dict[tuple[EvaluatedModel, str], str]:
    """Names of what was trained in several ways, such as with another loss: those of its runs.

    By model and by the settings of the training.
    """
    trained: dict[EvaluatedModel, dict[str, list[str]]] = {}
    for run in runs:
        models = {r.model for r in answers(run.records) if _is_end_of_training(r.model, run)}
        for model in {_without_seed(model) for model in models}:
            trained.setdefault(model, {}).setdefault(_training(run), []).append(run.name)
    return {
        (model, settings): without_number(of_settings) or of_settings[0]
        for model, by_settings in trained.items()
        if len(by_settings) > 1
        for settings, of_settings in by_settings.items()
    }


def _training(run: RunData) -> str:
    """The settings of the training, without its method."""
    return json.dumps({field: run.config.get(field) for field in TRAINING}, sort_keys=True)


def _name(model: EvaluatedModel) -> str:
    """Its label, and the name of the training where the method was trained in several ways."""
    return f"{model.label} ({model.weights})" if model.weights else model.label


def _is_end_of_training(model: EvaluatedModel, run: RunData) -> bool:
    """Whether a model has all steps of its experiment and the method that it was trained with."""
    steps = run.config.get("train", {}).get("steps", model.steps)
    return model.steps == steps > 0 and not model.trained_with and not model.adapter


def _combine(task: TaskResults) -> SeedResults:
    by_model = {
        model: group(records, lambda record: int(record.model.checkpoint))
        for model, records in group(
            task.records, lambda record: _without_seed(record.model, record.model.weights)
        ).items()
    }
    seeds = tuple(sorted({seed for by_seed in by_model.values() for seed in by_seed}))
    if len(seeds) < 2:
        raise ValueError(
            f"these runs only have the training seed {', '.join(map(str, seeds))}; give runs of "
            "several seeds"
        )
    for model, by_seed in by_model.items():
        _check_same_questions(model, by_seed, seeds)
    plain = next((model for model in by_model if model.is_plain), None)
    if plain is None:
        raise ValueError(
            "no variant was trained with the frequencies of the base, which the others are "
            "compared with; add Unscaled() to the baselines of the experiment"
        )
    variants = [_seed_variant(model, by_model, plain) for model in by_model]
    twins = []
    for first, *others in group(by_model, lambda model: model.method).values():
        for other in others:
            points = _points_over(by_model[first], by_model[other], task.longest)
            twins.append(Twins(_name(first), _name(other), points))
    return SeedResults(
        task.name,
        seeds,
        _name(plain),
        tuple(sorted(variants, key=lambda variant: -variant.rate.value)),
        tuple(twins),
    )


def _without_seed(model: EvaluatedModel, name: str = "") -> EvaluatedModel:
    return dataclasses.replace(model, checkpoint="", weights=name)


def _check_same_questions(model: EvaluatedModel, by_seed: BySeed, seeds: Sequence[int]) -> None:
    question_sets = {
        frozenset((record.item, record.question.prompt_sha256) for record in records)
        for records in by_seed.values()
    }
    if len(question_sets) > 1 or len(by_seed) < len(seeds):
        raise ValueError(
            f"{_name(model)}: not every one of the seeds {', '.join(map(str, seeds))} was asked "
            "the same questions; let the runs finish, or leave out the seed that lacks them"
        )


def _seed_variant(
    model: EvaluatedModel, by_model: dict[EvaluatedModel, BySeed], plain: EvaluatedModel
) -> SeedVariant:
    by_seed = by_model[model]
    seeds = sorted(by_seed)
    records = [record for seed in seeds for record in by_seed[seed]]
    by_length = group(records, lambda record: record.seq_len)
    correct = {
        n: {seed: num_correct(r for r in by_seed[seed] if r.seq_len == n) for seed in seeds}
        for n in sorted(by_length)
    }
    longest = max(by_length)
    rate = accuracy(by_length[longest]).scaled(100)
    over_plain = None if model == plain else _points_over(by_model[plain], by_seed, longest)
    num_asked = {n: len(records) // len(by_seed) for n, records in by_length.items()}
    return SeedVariant(_name(model), correct, num_asked, rate, over_plain)


def _points_over(a: BySeed, b: BySeed, seq_len: int) -> Interval:
    """Percentage points of b over a at one length, on the same questions and seeds."""
    both = []
    for seed in sorted(b):
        of_a = [record for record in a[seed] if record.seq_len == seq_len]
        of_b = [record for record in b[seed] if record.seq_len == seq_len]
        both += pairs(of_a, of_b)
    return paired_points(both)
