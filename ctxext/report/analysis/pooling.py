"""Runs that differ in nothing but their training seed are one arm: their answers are pooled.

Every seed is asked the same questions, so that the item of a pooled record also names its seed. The
answers of all seeds about one text are one cluster, as several questions about it are.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from os.path import commonprefix
from typing import Protocol, TypeVar

from ctxext.evals.record import AnswerRecord, EvalRecord

R = TypeVar("R", bound=EvalRecord)
SEED = re.compile(r" \[seed (-?\d+)\]$")


class Run(Protocol):
    """The parts of a run that say which arm it belongs to."""

    name: str
    records: list[EvalRecord]

    @property
    def config(self) -> dict: ...


def pool_seeds(runs: Sequence[Run]) -> None:
    """Give the trained models of runs that differ only in their seed one name and one checkpoint.

    A run whose seed another one has too stays by itself, as does one without a config.json.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        if isinstance(run.config.get("seed"), int):
            arms.setdefault(_arm(run), []).append(run)
    for arm in arms.values():
        seeds = [run.config["seed"] for run in arm]
        if len(arm) > 1 and len(set(seeds)) == len(seeds):
            name = _name_of_arm(arm)
            for run in arm:
                run.records = [
                    _pooled(r, run.config["seed"], name) if r.model.checkpoint == run.name else r
                    for r in run.records
                ]


def _arm(run: Run) -> str:
    """The settings of the experiment without its seed and its name."""
    settings = {k: v for k, v in run.config.items() if k not in ("seed", "name")}
    return json.dumps(settings, sort_keys=True)


def _name_of_arm(runs: Sequence[Run]) -> str:
    """Such as "yarn (seeds 0, 1, 2)" of the runs yarn-seed0 to yarn-seed2."""
    seeds = f"seeds {', '.join(str(run.config['seed']) for run in runs)}"
    name = without_number([run.name for run in runs])
    return f"{name} ({seeds})" if name else seeds


def without_number(names: Sequence[str]) -> str:
    """What the names of runs have in common, without a seed at its end: "yarn" of yarn-seed0."""
    return re.sub(r"[-_. ]*(seed)?[-_. =]*\d*$", "", commonprefix(list(names)))


def _pooled(record: R, seed: int, name: str) -> R:
    """The record under the name of its arm; of a trained model, with its seed in the item."""
    model = dataclasses.replace(record.model, checkpoint=name)
    if not model.is_trained:
        return dataclasses.replace(record, model=model)
    model = dataclasses.replace(model, weights="")
    pooled = dataclasses.replace(record, model=model, item=_with_seed(record.item, seed))
    if isinstance(pooled, AnswerRecord):
        item = _with_seed(pooled.question.needle_item, seed)
        question = dataclasses.replace(pooled.question, needle_item=item)
        pooled = dataclasses.replace(pooled, question=question)
    return pooled


def _with_seed(item: str, seed: int) -> str:
    return f"{item} [seed {seed}]"


def without_seed(item: str) -> str:
    """The item, equal for all seeds."""
    return SEED.sub("", item)


def seed_of(record: EvalRecord) -> int | None:
    """The training seed of a pooled record; None of one that is not pooled."""
    match = SEED.search(record.item)
    return int(match[1]) if match else None


def seeds_of(records: Iterable[EvalRecord]) -> list[int]:
    """The training seeds that are pooled in records, ascending; none where nothing is pooled."""
    return sorted({seed for record in records if (seed := seed_of(record)) is not None})
