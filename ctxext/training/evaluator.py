"""Evaluates the parameters of a run during training, as `ctxext eval` evaluates its checkpoint."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.evals import EvalRecord, evaluated_model
from ctxext.evals.record import AnswerRecord, LossRecord
from ctxext.evals.wrong_answers import WrongAnswer, wrong_answers
from ctxext.experiment import Experiment
from ctxext.model.decoder import Params
from ctxext.model.lm import LM
from ctxext.model.trainable import join
from ctxext.training.curve import Evaluated
from ctxext.training.evaluation_set import LOSS, RETRIEVAL, EvaluationSet

PREFIX = "eval/"
"""Of the names of measures in rows of metrics."""


class Evaluation(NamedTuple):
    """One evaluation during training."""

    values: Evaluated
    wrong: list[WrongAnswer]
    seconds: float

    @property
    def row(self) -> dict[str, Any]:
        """The same as a row of metrics."""
        named = {f"{PREFIX}{name}": value for name, value in self.values.values.items()}
        return {"step": self.values.step, **named, "eval_seconds": self.seconds}


def from_row(row: dict[str, Any]) -> Evaluated | None:
    """The values of a row of metrics; None if it is another row."""
    values = {name.removeprefix(PREFIX): x for name, x in row.items() if name.startswith(PREFIX)}
    return Evaluated(row["step"], values) if values else None


class Evaluator:
    """Evaluates every `train.eval_every` steps, before the first step and after the last.

    The model is the one that is trained: in its compute dtype, with its adapters next to the
    frozen kernels. With float32 and all parameters trained, its records are those of `ctxext eval`
    to the bit; adapters that are merged there, and bfloat16, make differences of rounding.
    """

    def __init__(self, experiment: Experiment, base: LM, evaluation_set: EvaluationSet) -> None:
        self._experiment = experiment
        self._base = base
        self._set = evaluation_set

    @classmethod
    def of(cls, experiment: Experiment, base: LM) -> "Evaluator | None":
        """The evaluator of a run, None without `train.eval_every`.

        Raises ValueError as `EvaluationSet.of`.
        """
        if not experiment.train.eval_every:
            return None
        return cls(experiment, base, EvaluationSet.of(experiment, base.context, base.tokenizer))

    def due(self, step: int) -> bool:
        """True if the parameters after `step` are to be evaluated."""
        settings = self._experiment.train
        return step % settings.eval_every == 0 or step == settings.steps

    def evaluate(self, step: int, params: Params, frozen: Params) -> Evaluation:
        """Evaluate the parameters after `step`. Raises ValueError for output that is not finite."""
        started = time.perf_counter()
        lm = self.model(params, frozen)
        described = evaluated_model(lm, steps=step, train_seq_len=self._experiment.train.seq_len)
        values: dict[str, float] = {}
        by_length: dict[int, list[float]] = {}
        wrong: list[WrongAnswer] = []
        for evaluation in self._set.retrieval:
            records = list(evaluation.records(lm, evaluation.items(), described))
            wrong += wrong_answers(evaluation, lm.tokenizer, records)
            for seq_len in evaluation.seq_lens:
                share = accuracy(records, seq_len)
                values[f"{evaluation.full_title}@{seq_len}"] = share
                by_length.setdefault(seq_len, []).append(share)
        for seq_len, shares in by_length.items():
            values[f"{RETRIEVAL}@{seq_len}"] = float(np.mean(shares))
        if loss := self._set.loss:
            records = list(loss.records(lm, loss.items(), described))
            for seq_len in loss.seq_lens:
                values[f"{LOSS}@{seq_len}"] = nats_per_token(records, seq_len)
        not_finite = [name for name, value in values.items() if not np.isfinite(value)]
        if not_finite:
            raise ValueError(f"step {step}: {', '.join(not_finite)} is not finite")
        return Evaluation(Evaluated(step, values), wrong, time.perf_counter() - started)

    def model(self, params: Params, frozen: Params) -> LM:
        """The trained parameters as a model that can be asked."""
        experiment = self._experiment
        base = self._base
        return LM(
            base.config,
            experiment.trainable.materialize(join(params, frozen), {}),
            base.tokenizer,
            scaling=experiment.effective_scaling(base.scaling),
            attention=experiment.evaluated_attention,
            dtype=experiment.train.dtype,
            mesh=experiment.mesh,
            generation_config=base.generation_config,
            declared_context=base.context,
        )


def accuracy(records: Sequence[EvalRecord], seq_len: int) -> float:
    """The share of right answers at a length."""
    answers = [r for r in records if isinstance(r, AnswerRecord) and r.seq_len == seq_len]
    return float(np.mean([record.scores.correct for record in answers]))


def nats_per_token(records: Sequence[EvalRecord], seq_len: int) -> float:
    """The loss of all scored tokens at a length."""
    scores = [r.scores for r in records if isinstance(r, LossRecord) and r.seq_len == seq_len]
    return sum(s.nll for s in scores) / sum(s.count for s in scores)
