"""Published numbers compared with what a run measured, by intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ctxext.evals.expected import Expected
from ctxext.evals.record import (
    AnswerRecord,
    EvalRecord,
    EvaluatedModel,
    Measurement,
    RecoveryRecord,
)
from ctxext.evals.stats import Interval
from ctxext.report.analysis.perplexity import Perplexity, losses
from ctxext.report.analysis.records import Variant, accuracy, group, is_control
from ctxext.report.analysis.recovery import Recovered
from ctxext.report.analysis.runs import RunData
from ctxext.rundir import RunDir
from ctxext.serialization import from_json

Verdict = Literal[
    "agrees", "disagrees", "not distinguishable from agreement", "no interval", "not measured"
]


@dataclass(frozen=True)
class Outcome:
    """An expected number, and the one measured of the trained variant (None if there is none)."""

    run: str
    expected: Expected
    measured: Interval | None

    @property
    def verdict(self) -> Verdict:
        """Agreement: the whole interval is within value +- tolerance; disagreement: no point is.

        In between, the data allow both. One document gives no interval to judge by.
        """
        if self.measured is None:
            return "not measured"
        _, low, high = self.measured
        if low is None or high is None:
            return "no interval"
        if self.expected.low <= low and high <= self.expected.high:
            return "agrees"
        if high < self.expected.low or low > self.expected.high:
            return "disagrees"
        return "not distinguishable from agreement"

    def to_json(self) -> dict[str, Any]:
        fields = ("evaluation", "seq_len", "metric", "value", "tolerance", "what", "source")
        return {
            "run": self.run,
            **{name: getattr(self.expected, name) for name in fields},
            "verdict": self.verdict,
            "measured": self.measured and self.measured._asdict(),
        }


def outcomes(run: RunData) -> list[Outcome]:
    """Every number that the experiment of a run expects, in its order."""
    trained = [r for r in run.records if _is_result(r.model, run)]
    by_model = list(group(trained, lambda record: record.model).values())
    records = by_model[0] if by_model else []
    return [
        Outcome(run.name, expected, _measured(expected, records)) for expected in _expected(run)
    ]


def _expected(run: RunData) -> list[Expected]:
    """What the experiment expects. Raises ValueError naming the file for anything else."""
    try:
        numbers = list(from_json(run.config.get("expect", [])))
        for number in numbers:
            if not isinstance(number, Expected):
                raise ValueError(f"{str(number)[:50]!r} is no published number")
    except ValueError as error:
        file = RunDir(run.path).config_file
        raise ValueError(f"{file} is damaged: expect: {error}; restore it") from None
    return numbers


def _is_result(model: EvaluatedModel, run: RunData) -> bool:
    """Whether a model is what the experiment trained: not another checkpoint, method or adapter."""
    steps = run.config.get("train", {}).get("steps")
    is_changed = model.trained_with or model.adapter
    return model.steps == steps and model.method == run.method and not is_changed


def _measured(expected: Expected, records: Sequence[EvalRecord]) -> Interval | None:
    measurement = Measurement(expected.evaluation, expected.seq_len, expected.metric)
    measured = [record for record in records if record.measurement == measurement]
    if expected.metric == "accuracy":
        answers = [r for r in measured if isinstance(r, AnswerRecord) and not is_control(r)]
        return accuracy(answers).scaled(100) if answers else None
    if expected.metric == "recovery":
        answers = [r for r in measured if isinstance(r, RecoveryRecord)]
        return Recovered(Variant(answers[0].model), answers).recovery if answers else None
    texts = losses(measured)
    return Perplexity(Variant(texts[0].model), texts).perplexity if texts else None
