"""The evaluations during training: which questions and texts they are, and what they measure."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctxext.data import Stdlib, TextSource
from ctxext.evals import Eval, Perplexity, Retrieval
from ctxext.evals.base import documents
from ctxext.experiment import Experiment
from ctxext.model.context import DeclaredContext
from ctxext.nearest import nearest
from ctxext.tasks.base import bos_prefix

RETRIEVAL = "retrieval"
LOSS = "loss"
SEED = 2**31
"""Added to the seed of an experiment's questions: those during training are others."""
DOCUMENTS = 4
"""Held-out documents whose loss is measured."""
TARGET_TOKENS = 512
"""Tokens of each that are predicted, at most."""


def lengths(experiment: Experiment, context: DeclaredContext) -> tuple[int, ...]:
    """The lengths that are asked, in tokens: by default the window and the target of the method."""
    if experiment.train.eval_lengths:
        return tuple(sorted(set(experiment.train.eval_lengths)))
    scaling = experiment.effective_scaling(context.scaling)
    target = context.export_length(scaling, experiment.trained_length)
    return tuple(sorted({context.original, max(context.original, target)}))


def retrieval_evals(experiment: Experiment, seq_lens: Sequence[int]) -> list[Retrieval]:
    """The retrieval tasks of the set, a few questions of each.

    Questions that can share a text do. Raises ValueError for a name that is not a task of the
    experiment.
    """
    asked = [e for e in experiment.evals if isinstance(e, Retrieval) and e.condition == "needle"]
    by_name = {e.full_title: e for e in reversed(asked or [Retrieval(tuple(seq_lens))])}
    names = [name for name in experiment.train.eval_set if name != LOSS]
    known = [RETRIEVAL, LOSS, *by_name]
    for name in names:
        if name not in known:
            raise ValueError(f"train.eval_set: {_unknown(name, known)}")
    chosen = [e for name, e in by_name.items() if RETRIEVAL in names or name in names]
    return [_small(e, tuple(seq_lens), experiment.train.eval_questions) for e in reversed(chosen)]


def _small(evaluation: Retrieval, seq_lens: tuple[int, ...], num_questions: int) -> Retrieval:
    shares = evaluation.task.supports_shared_context and None not in evaluation.depths
    return dataclasses.replace(
        evaluation,
        seq_lens=seq_lens,
        n=max(1, round(num_questions / len(evaluation.depths))),
        seed=evaluation.seed + SEED,
        shared_context=shares,
    )


def _fitting(evaluation: Retrieval, tokenizer: Any) -> Retrieval:
    """The same, each question with its own text where a text is too short for several.

    Raises ValueError if one question does not fit its length.
    """
    if evaluation.shared_context:
        try:
            return _built(evaluation, tokenizer)
        except ValueError:
            evaluation = dataclasses.replace(evaluation, shared_context=False)
    return _built(evaluation, tokenizer)


def _built(evaluation: Retrieval, tokenizer: Any) -> Retrieval:
    """The same, after every question was built once: none must fail in the middle of a run."""
    for _ in evaluation.examples(tokenizer):
        pass
    return evaluation


def measures(experiment: Experiment, context: DeclaredContext) -> list[str]:
    """The names of everything that is measured, such as "passkey@8192" and "loss@8192".

    Raises ValueError as `retrieval_evals`.
    """
    seq_lens = lengths(experiment, context)
    names = [e.full_title for e in retrieval_evals(experiment, seq_lens)]
    if names:
        names.append(RETRIEVAL)
    if LOSS in experiment.train.eval_set:
        names.append(LOSS)
    return [f"{name}@{seq_len}" for name in names for seq_len in seq_lens]


def check(experiment: Experiment, context: DeclaredContext) -> None:
    """Raise ValueError for a measure that is named and not measured, with the nearest that is."""
    settings = experiment.train
    if not settings.eval_every:
        return
    known = measures(experiment, context)
    for field, name in (("keep_best", settings.keep_best_measure), ("stop_by", settings.stop_by)):
        if name is not None and name not in known:
            raise ValueError(f"train.{field}: {_unknown(name, known)}")


def _unknown(name: str, known: Sequence[str]) -> str:
    close = nearest(name, known, close=0.4)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{name!r} is not measured during training; {hint}Known: {', '.join(known)}"


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluations of one run, which are the same at every step."""

    retrieval: tuple[Retrieval, ...]
    loss: Perplexity | None
    """Of held-out text; None if it is not asked for, or if there is none that is long enough."""
    notes: tuple[str, ...]
    """Sentences about what cannot be measured."""

    @classmethod
    def of(
        cls, experiment: Experiment, context: DeclaredContext, tokenizer: Any
    ) -> "EvaluationSet":
        """The set of an experiment.

        Raises ValueError as `check`, for questions that do not fit their length, and if a measure
        that decides about a checkpoint cannot be made of the text.
        """
        check(experiment, context)
        seq_lens = lengths(experiment, context)
        retrieval = tuple(_fitting(e, tokenizer) for e in retrieval_evals(experiment, seq_lens))
        loss = None
        notes: list[str] = []
        if LOSS in experiment.train.eval_set:
            loss, notes = _held_out_loss(experiment, seq_lens, tokenizer)
        return cls(retrieval, loss, tuple(notes))

    @property
    def evals(self) -> list[Eval]:
        return [*self.retrieval, *([self.loss] if self.loss else [])]

    def sentence(self, times: int) -> str:
        """What is measured, and how often."""
        parts = []
        for e in self.retrieval:
            parts.append(f"{e.full_title} at {_listed(e.seq_lens)} tokens, {_questions(e)} each")
        if self.loss:
            parts.append(
                f"loss of {self.loss.num_documents} held-out documents at "
                f"{_listed(self.loss.seq_lens)} tokens ({_source_name(self.loss.source)})"
            )
        return f"during training, {times} times: {'; '.join(parts)}"


def _questions(evaluation: Retrieval) -> str:
    texts = evaluation.n if evaluation.shared_context else evaluation.n * len(evaluation.depths)
    return f"{evaluation.n * len(evaluation.depths)} questions about {texts} texts"


def _listed(seq_lens: Sequence[int]) -> str:
    return " and ".join(f"{n:,}" for n in seq_lens)


def _source_name(source: TextSource) -> str:
    texts = [text.path for text in source.text_on_disk()]
    return ", ".join(texts) or "the Python standard library"


def _held_out_loss(
    experiment: Experiment, seq_lens: Sequence[int], tokenizer: Any
) -> tuple[Perplexity | None, list[str]]:
    """The loss of held-out text at as many of the lengths as some text has documents for.

    Text of the run's own data comes first, then the standard library's held-out files.
    """
    settings = experiment.train
    sources = [*experiment.data.held_out_parts(settings.held_out), Stdlib("heldout")]
    num_bos = len(bos_prefix(tokenizer))
    for count in range(len(seq_lens), 0, -1):
        measured = tuple(seq_lens[:count])
        left_out = seq_lens[count:]
        for source in dict.fromkeys(sources):
            sizes = [len(ids) for ids in documents(source, tokenizer)]
            if sum(size >= measured[-1] - num_bos for size in sizes) >= DOCUMENTS:
                loss = Perplexity(
                    measured,
                    num_documents=DOCUMENTS,
                    target_tokens=min(TARGET_TOKENS, measured[0] // 2),
                    source=source,
                )
                return loss, _left_out(experiment, left_out)
    return None, _left_out(experiment, seq_lens)


def _left_out(experiment: Experiment, seq_lens: Sequence[int]) -> list[str]:
    """Say at which lengths no loss is measured; raises ValueError if a choice depends on it."""
    if not seq_lens:
        return []
    settings = experiment.train
    sentence = (
        f"the loss at {_listed(seq_lens)} tokens is not measured during training, because no "
        f"held-out text has {DOCUMENTS} documents of that length"
    )
    names = {f"{LOSS}@{seq_len}" for seq_len in seq_lens}
    for field, name in (("keep_best", settings.keep_best_measure), ("stop_by", settings.stop_by)):
        if name in names:
            raise ValueError(
                f"train.{field} is {name}, but {sentence}: give longer documents, a larger "
                "--train.held-out, or another measure"
            )
    return [sentence]
