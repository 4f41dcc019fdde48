"""A published number that an experiment is held against: its value, tolerance and source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

from ctxext.evals.base import Eval
from ctxext.evals.record import Measurement, Metric


@dataclass(frozen=True)
class Expected:
    """The expected result of `evaluation` at `seq_len` tokens: value +- tolerance.

    Raises ValueError for values that make no sense.
    """

    type_tag: ClassVar[str] = "expected"
    evaluation: str
    """The name of a perplexity, such as "ppl:truncate", or of a task, such as "passkey"."""
    seq_len: int
    value: float
    """A perplexity, or an accuracy in percent."""
    tolerance: float
    """How far a sound reproduction may be off; papers give none, so the recipe chooses it."""
    what: str
    """The model and text of the number."""
    source: str
    """The paper and table, or the file."""
    metric: Metric = "perplexity"
    """The quantity that `value` is."""

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            known = " or ".join(get_args(Metric))
            raise ValueError(f"expect.metric {self.metric!r} is not known; choose {known}")
        if not (math.isfinite(self.value) and 0 < self.tolerance < math.inf):
            raise ValueError(
                "an expected value and its tolerance must be finite, the tolerance above 0, got "
                f"{self.value} +- {self.tolerance}"
            )
        if not self.what or not self.source:
            raise ValueError(
                "an expected number states what it is of and where it is from: give `what` and "
                "`source`"
            )

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.evaluation, self.seq_len, self.metric)

    @property
    def low(self) -> float:
        return self.value - self.tolerance

    @property
    def high(self) -> float:
        return self.value + self.tolerance


def check(expect: Sequence[Expected], evals: Sequence[Eval]) -> None:
    """Raise ValueError unless each of `expect` is measured by exactly one of `evals`."""
    measured = [measurement for evaluation in evals for measurement in evaluation.measurements()]
    for expected in expect:
        measurement = expected.measurement
        count = measured.count(measurement)
        if count == 1:
            continue
        how = f"{count} of evals measure" if count else "none of evals measures"
        listed = "; ".join(dict.fromkeys(map(_describe, measured))) or "nothing"
        raise ValueError(f"expect: {how} {_describe(measurement)}; measured: {listed}")


def _describe(measurement: Measurement) -> str:
    return f"{measurement.metric} of {measurement.evaluation} at {measurement.seq_len}"
