"""Runs that differ in nothing but their training seed are one arm: their answers are pooled.

Every seed is asked the same questions, so that the item of a pooled record also names its seed. The
answers of all seeds about one text are one cluster, as several questions about it are.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
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

    The runs of an arm in which two have one seed stay by themselves, see `repeated_seeds`, as does
    one without a config.json.
    """
    by_place = {str(place): run for place, run in enumerate(runs)}
    for seeds in _arms({place: run.config for place, run in by_place.items()}):
        arm = [(by_place[place], seed) for place, seed in seeds.items()]
        if len(arm) > 1 and len(set(seeds.values())) == len(arm):
            name = _name_of_arm([run for run, _ in arm])
            for run, seed in arm:
                run.records = [
                    _pooled(r, seed, name) if r.model.checkpoint == run.name else r
                    for r in run.records
                ]


def repeated_seeds(configs: Mapping[str, Mapping]) -> list[str]:
    """A sentence for each arm that is not pooled, as two of its runs have the same seed.

    configs: the config.json of each run by its name.
    """
    sentences = []
    for seeds in _arms(configs):
        of_seed: dict[int, list[str]] = {}
        for name, seed in seeds.items():
            of_seed.setdefault(seed, []).append(name)
        for seed, names in of_seed.items():
            if len(names) > 1:
                sentences.append(
                    f"{' and '.join(names)} have the same settings and the same seed {seed}: the "
                    f"{len(seeds)} runs with these settings are not pooled; leave one of them out"
                )
                break
    return sentences


def _arms(configs: Mapping[str, Mapping]) -> list[dict[str, int]]:
    """The seeds of the runs of each arm, by the runs' names: equal but for name and seed."""
    arms: dict[str, dict[str, int]] = {}
    for name, config in configs.items():
        if isinstance(config.get("seed"), int):
            settings = {k: v for k, v in config.items() if k not in ("seed", "name")}
            arms.setdefault(json.dumps(settings, sort_keys=True), {})[name] = config["seed"]
    return list(arms.values())


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
