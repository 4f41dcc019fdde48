"""A published number beside an experiment: what is measured, the value, how far off it may be, where it stands."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ctxext.evals.base import Eval

Metric = Literal["perplexity", "accuracy"]


@dataclass(frozen=True)
class Expected:
    """value +- tolerance is what the trained variant should show in `evaluation` at `seq_len` tokens.

    evaluation: the first part of its items' names, as "ppl:truncate" or "passkey". value: a perplexity, or an accuracy
    in percent. tolerance: how far a sound reproduction may be off; papers give none, so that it is the recipe's. what:
    model and text of the number; source: the paper and table, or the file. Raises ValueError for what is no such thing.
    """

    type_tag: ClassVar[str] = "expected"
    evaluation: str
    seq_len: int
    value: float
    tolerance: float
    what: str
    source: str
    metric: Metric = "perplexity"

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise ValueError(
                f"expect.metric {self.metric!r} is not known; choose {' or '.join(get_args(Metric))}"
            )
        if not (math.isfinite(self.value) and 0 < self.tolerance < math.inf):
            raise ValueError(
                f"an expected value and its tolerance must be finite, the tolerance above 0, got "
                f"{self.value} +- {self.tolerance}"
            )
        if not self.what or not self.source:
            raise ValueError(
                "an expected number says what it is of, and its source: give `what` and `source`"
            )

    @property
    def measurement(self) -> tuple[str, int, Metric]:
        return self.evaluation, self.seq_len, self.metric

    @property
    def low(self) -> float:
        return self.value - self.tolerance

    @property
    def high(self) -> float:
        return self.value + self.tolerance


def measurements(evals: Sequence[Eval]) -> Iterator[tuple[str, int, Metric]]:
    """(evaluation, length, metric) of each of `evals` at each of its lengths; controls measure something else."""
    for evaluation in evals:
        if getattr(evaluation, "condition", "needle") == "needle":
            parts = (item.split("/") for item in evaluation.items())
            for name, seq_len in dict.fromkeys((part[0], int(part[2])) for part in parts):
                text = name.partition(":")[0] in ("ppl", "longppl")
                yield name, seq_len, "perplexity" if text else "accuracy"


def check(expect: Sequence[Expected], evals: Sequence[Eval]) -> None:
    """Raises ValueError unless each of `expect` is measured by exactly one of `evals`."""
    known = list(measurements(evals))
    for wanted in (expected.measurement for expected in expect):
        if known.count(wanted) != 1:
            how = (
                f"{known.count(wanted)} of evals measure"
                if wanted in known
                else "none of evals measures"
            )
            there = "; ".join(dict.fromkeys(map(_words, known))) or "nothing"
            raise ValueError(f"expect: {how} {_words(wanted)}; measured: {there}")


def _words(measurement: tuple[str, int, Metric]) -> str:
    name, seq_len, metric = measurement
    return f"{metric} of {name} at {seq_len}"
