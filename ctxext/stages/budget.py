"""How much of a recipe's evaluations a run asks: all, or what a budget allows, and a note of it."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from ctxext.evals import Eval
from ctxext.evals.budget import (
    FEWEST_DOCUMENTS,
    MOST_DOCUMENTS,
    Budget,
    of_texts,
    read_budget,
)
from ctxext.files import write_json
from ctxext.parallel import distributed
from ctxext.progress import duration
from ctxext.report.analysis.run_files import BUDGET, read_object
from ctxext.report.table import Column, Table
from ctxext.rundir import RunDir
from ctxext.stages.estimate import Plan, Planned
from ctxext.stages.speeds import Speeds

FULL = "full"


@dataclasses.dataclass(frozen=True)
class Scaled:
    """The evaluations of a run within its budget."""

    budget: str
    evals: tuple[Eval, ...]
    declared: tuple[Eval, ...]
    texts: int | None = None
    """Texts per length that a budget in minutes allows; None for the other budgets."""

    def data(self) -> dict[str, Any]:
        """As JSON values: what was asked of what the recipe declares, by evaluation."""
        return {
            "budget": self.budget,
            "texts": self.texts,
            "evaluations": [
                {
                    "title": part.full_title,
                    "asked": len(part.items()),
                    "declared": len(whole.items()),
                }
                for part, whole in zip(self.evals, self.declared, strict=True)
            ],
        }


def scale(budget: str, declared: Sequence[Eval], *, texts: int | None = None) -> Scaled:
    """The evaluations within a named budget, or with so many `texts` per length.

    "full" is what the recipe declares, however much that is; no budget asks more.
    """
    limit = _limit(texts) if texts is not None else read_budget(budget)
    assert isinstance(limit, Budget)
    whole = tuple(declared)
    if budget == FULL:
        return Scaled(budget, whole, whole)
    return Scaled(budget, tuple(each.within(limit) for each in whole), whole, texts)


def is_minutes(budget: str) -> bool:
    """Whether a budget is a number of minutes. Raises ValueError for one that is none at all."""
    return not isinstance(read_budget(budget), Budget)


def known_texts(run: RunDir | None, budget: str) -> int | None:
    """The texts per length of the same budget at an earlier start of a run, if there was one.

    Another speed of the device would otherwise change what a resumed run asks.
    """
    if run is None:
        return None
    stored = distributed.broadcast_from_primary(lambda: _stored(run))
    return stored.get("texts") if stored.get("budget") == budget else None


def texts_within(budget: str, plan: Plan, speeds: Speeds) -> int:
    """The most texts per length with which all evaluations of a run take `budget` minutes.

    plan: of the evaluations as the recipe declares them. Raises ValueError if one text per length
    takes longer.
    """
    minutes = float(budget)
    stages = [stage for stage in plan.planned if stage.kind == "evaluate"]

    def seconds(num_texts: int) -> float:
        limit = _limit(num_texts)
        return sum(sum(_seconds(stage, plan.evals, limit, speeds)) for stage in stages)

    one = seconds(1)
    if one > 60 * minutes:
        print("\n".join(_split_of(stages, plan.evals, speeds)), file=sys.stderr, flush=True)
        raise ValueError(
            f"--budget {budget}: one text of every length takes about {duration(one)} for the "
            f"{len(stages)} models that this run evaluates; give more minutes"
        )
    most, too_many = 1, 1 + max(len(each.items()) for each in plan.evals)
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if seconds(middle) <= 60 * minutes:
            most = middle
        else:
            too_many = middle
    return most


def _limit(texts: int) -> Budget:
    """So many texts per length, and as many documents: a recipe itself says when it is enough."""
    return dataclasses.replace(
        of_texts(texts, 1),
        documents=max(FEWEST_DOCUMENTS, texts),
        windows=max(1, texts // MOST_DOCUMENTS),
    )


def _split_of(stages: Sequence[Planned], evals: Sequence[Eval], speeds: Speeds) -> list[str]:
    """What one text of every length takes, by stage: reading it, and compiling before that."""
    rows = [(stage.name, *_seconds(stage, evals, _limit(1), speeds)) for stage in stages]
    rows.append(("together", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    table = Table(
        f"one text of every length ({speeds.basis}); loading, training, export and proof come "
        "on top of a budget",
        [
            Column("stage", lambda row: row[0]),
            Column("reads", lambda row: duration(row[1])),
            Column("compiles", lambda row: duration(row[2])),
        ],
        rows,
    )
    return [table.to_text()]


def _seconds(
    stage: Planned, evals: Sequence[Eval], budget: Budget, speeds: Speeds
) -> tuple[float, float]:
    """(reading, compiling) of a stage within a budget, in proportion to the items asked."""
    reads = compiles = 0.0
    for work, whole in zip(stage.works, evals, strict=True):
        share = len(whole.within(budget).items()) / max(1, len(whole.items()))
        reads += share * work.seconds(speeds.reading)
        compiles += len(work.shapes()) * speeds.reading.compiling / max(1, len(stage.works))
    return reads, compiles


@distributed.primary_only
def record(run: RunDir, scaled: Scaled) -> None:
    """Write budget.json, unless an earlier start asked more, whose records are still there."""
    new = scaled.data()
    old = _stored(run)
    asked_before = [part["asked"] for part in old.get("evaluations", [])]
    asked_now = [part["asked"] for part in new["evaluations"]]
    same = len(asked_before) == len(asked_now)
    if same and any(before > now for before, now in zip(asked_before, asked_now, strict=True)):
        return
    write_json(run.budget_file, new)


def _stored(run: RunDir) -> dict[str, Any]:
    """budget.json; {} if there is none. Raises ValueError, naming the file, for a damaged one."""
    return read_object(run.budget_file, BUDGET)
