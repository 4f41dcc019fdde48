"""Evaluation records: who answered, what was asked and how it went, as typed parts.

A run keeps them in records.jsonl, one per line. Labels for people are made from the parts
(`EvaluatedModel.label`, `Question.title`) and never parsed.
"""

import abc
import dataclasses
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from ctxext.evals.strict_json import decode, encode
from ctxext.files import read_jsonl
from ctxext.tasks.building.scores import Failure

Condition = Literal["needle", "no-needle", "needle-only"]
"""The contents of the text: the needles in their haystack, or a control without one of the two.

"no-needle": more haystack in place of the needles, so that a right answer is a guess.
"needle-only": no haystack, so that a wrong answer has nothing to do with length.
"""

Metric = Literal["accuracy", "perplexity", "recovery"]
Mean = Literal["token", "window"]


class Measurement(NamedTuple):
    """A quantity at one length, such as the accuracy of "passkey" at 1,024 tokens."""

    evaluation: str
    """The task of questions ("passkey"), or the name of a perplexity ("ppl:yarn")."""
    seq_len: int
    metric: Metric


@dataclass(frozen=True)
class EvaluatedModel:
    """Who answered: the weights, their training and the methods they are run with."""

    window: int
    """Tokens that the base model was pre-trained for."""
    rope: str = "none"
    """Label of the frequencies (`methods.label`); "none" is plain RoPE as pre-trained."""
    base_rope: str = "none"
    """Label of the frequencies of the base as it is; of one extended before, its scaling."""
    attention: str = "causal"
    """Label of the attention method; "causal" changes nothing."""
    checkpoint: str = ""
    """Name of the weights; "" for those of the run that holds the record."""
    weights: str = ""
    """Checksum of the parameters and the tokenizer, which tells checkpoints of one name apart; ""
    with no name."""
    steps: int = 0
    """Fine-tuning steps that the weights have had in their run."""
    train_seq_len: int | None = None
    """Tokens per training row of their run; None for a checkpoint that is not a run's: whether it
    was trained before is not known."""
    trained_with: str = ""
    """The method that the weights were trained with; "" if it is the one that they are run with."""
    adapter: str = ""
    """Name of the adapter that is merged into the weights."""
    dtype: str = "float32"
    """Number type of the forward pass."""
    bos: bool = True
    """Whether every text began with BOS."""
    semantics: str = "incremental"
    """How new tokens are written where the method follows the length, see `generation`."""
    quantized: str = field(default="", compare=False)
    """The quantized types in the file that the weights were read from, "Q4_1"; "" for none, and
    where it is not known."""
    without_bos: str = field(default="", compare=False)
    """Why texts began without BOS, in words; "" if they began with it, or if it is not known."""

    @property
    def changes(self) -> list[str]:
        """The labels of both methods, without those that change nothing about the base."""
        rope = [] if self.rope == self.base_rope else [self.rope]
        attention = [] if self.attention == "causal" else [self.attention]
        return rope + attention

    @property
    def method(self) -> str:
        """The methods that change something, "yarn(factor=4)", or "none": the base as it is."""
        name = " + ".join(self.changes) or "none"
        return name if self.semantics == "incremental" else f"{name} [{self.semantics}]"

    @property
    def description(self) -> str:
        """The method for people, who want to know what "none" is for a base extended before."""
        if self.is_plain and self.base_rope != "none":
            return f"{self.method} ({self.base_rope} as the base is)"
        return self.method

    @property
    def is_plain(self) -> bool:
        """Whether frequencies and attention are those of the base as it is."""
        return not self.changes

    @property
    def is_trained(self) -> bool:
        """Whether the weights were trained after the base: by the steps of a run, or an adapter."""
        return self.steps > 0 or bool(self.adapter)

    @property
    def label(self) -> str:
        """The method and its training, for people: "yarn(factor=4), 60 steps at 256"."""
        parts = [self.description]
        if self.steps > 0 and self.train_seq_len is not None:
            under = f" under {self.trained_with}" if self.trained_with else ""
            parts.append(f"{self.steps} steps at {self.train_seq_len}{under}")
        if self.adapter:
            parts.append(f"adapter {self.adapter}")
        if not self.is_trained and self.train_seq_len is not None:
            parts.append("zero-shot")
        if self.dtype != "float32":
            parts.append(self.dtype)
        if not self.bos:
            parts.append("without BOS")
        return ", ".join(parts)

    @property
    def phrase(self) -> str:
        """The same in a sentence: "yarn(factor=4) after 60 steps"."""
        parts = [self.description]
        if self.steps > 0:
            under = f" under {self.trained_with}" if self.trained_with else ""
            parts.append(f" after {self.steps} steps{under}")
        if self.adapter:
            parts.append(f" with the adapter {self.adapter}")
        if not self.is_trained and self.train_seq_len is not None:
            parts.append(", zero-shot")
        if self.dtype != "float32":
            parts.append(f" in {self.dtype}")
        if not self.bos:
            parts.append(" without BOS")
        return "".join(parts)


@dataclass(frozen=True)
class Cluster:
    """Records that are not independent of each other have equal values in one of the fields.

    A record that shares nothing has its item's name in both.
    """

    document: int | str
    """The document that the text was taken from: intervals resample whole documents."""
    text: str
    """A name for the text, equal for all questions about it."""


@dataclass(frozen=True)
class Question:
    """A question about a text."""

    task: str
    fields: dict[str, Any]
    """The fields of the task: everything that its wording depends on."""
    condition: Condition
    needle_item: str
    """The item that asks the same question with its needle in the text; a control's twin."""
    tokens: int
    """Tokens of the prompt and of the space for the answer, BOS included."""
    prompt_sha256: str
    """Of the token ids: the same item is another prompt under another tokenizer."""
    gold: tuple[int, ...]
    """Token ids of the right answer."""
    depth: float | None = None
    """Where the needle should be, 0 (start) to 1 (end); None where that is not one place."""
    depth_achieved: float | None = None
    """Where the needle is."""
    needles: tuple[tuple[int, ...], ...] = ()
    """(start, length) in tokens of each span of the prompt that the answer depends on."""
    distance: int | None = None
    """Tokens from the first needle to the end of the prompt."""
    distances: tuple[int, ...] = ()
    """The same for every record in the text; the one that is asked for comes first."""
    haystack: tuple[tuple[int, ...], ...] = ()
    """(document, start, length) of each piece of text around the needles."""
    suite: str = ""
    """The suite of tasks that it belongs to, such as "ruler-exact"; "" for none."""
    label: str = ""
    """The task's name in that suite."""

    @property
    def title(self) -> str:
        """The name of the question in tables: "ruler-exact/vt", or the task."""
        if self.suite and self.label:
            return f"{self.suite}/{self.label}"
        return self.label or self.task


@dataclass(frozen=True)
class AnswerScores:
    """How one question was answered, in three ways.

    The model writes an answer (`prediction` to `correct`); the right answer is scored token by
    token (`answer_*`); and it is compared with wrong answers from the text (`choices`, `chosen`).
    """

    prediction: tuple[int, ...]
    """Token ids that were written, up to the first that ends the answer."""
    text: str
    """The prediction as text."""
    metric: str
    """How the text is scored, see `tasks.building.scores.Metric`."""
    score: float
    """0 to 1, by the metric."""
    correct: bool
    """Whether the score is 1."""
    answer_logprobs: tuple[float, ...]
    """log p of each token of the right answer, given the true tokens before it."""
    answer_nll: float
    """Mean nats per token of the right answer."""
    answer_probability: float
    choices: int = 1
    """Candidates, the right answer included; 1 where the text has no others."""
    chosen: bool | None = None
    """Whether the right answer is the most likely candidate, by nats per token. The chance level is
    1 / choices; None for a single candidate."""
    failure: Failure | None = None
    """The kind of mistake (`tasks.building.scores.failure`); None for a right answer."""


@dataclass(frozen=True)
class LossEstimator:
    """Which perplexity the losses belong to; those of different estimators are not comparable."""

    name: str
    """"same-target", "growing-window", "longppl", or one of `perplexity_estimators.ESTIMATORS`."""
    mean: Mean = "token"
    """Over all tokens alike; or first over the tokens of each window, then over windows."""
    stride: int | None = None
    """Tokens from one window to the next, where windows roll over the text."""
    keys_from: str = ""
    """Where the key tokens of LongPPL come from."""


@dataclass(frozen=True)
class WindowLosses:
    """Sums over the scored tokens of each window of a document, in order."""

    nll: tuple[float, ...]
    """Nats."""
    count: tuple[int, ...]
    """Tokens."""


@dataclass(frozen=True)
class PositionLosses:
    """Sums over tokens by how many tokens come before them, in bins."""

    edges: tuple[int, ...]
    """Bin i holds the tokens after edges[i] to edges[i + 1] - 1 others."""
    nll: tuple[float, ...]
    """Nats."""
    count: tuple[int, ...]
    """Tokens."""


@dataclass(frozen=True)
class LossScores:
    """Sums over the scored tokens of a text: exp(sum nll / sum count) is a perplexity."""

    nll: float
    """Nats."""
    count: int
    """Tokens."""
    num_bytes: int
    """UTF-8 bytes of those tokens."""
    windows: WindowLosses | None = None
    by_position: PositionLosses | None = None
    all_nll: float | None = None
    """Nats of all tokens, where only some are scored."""
    all_count: int | None = None


@dataclass(frozen=True)
class RecoveryScores:
    """Nats of whole right answers, teacher-forced: of a question asked in two ways, and of another.

    recovery = sum(nll_without - nll) / sum(nll_without - nll_alone), over questions.
    """

    nll: float
    """The question about a text that holds its needle, among others."""
    nll_without: float
    """Another question about the same text, whose needle is not in it."""
    nll_alone: float
    """The first question after nothing but its needle."""
    count: int
    """Tokens of the right answer."""


@dataclass(frozen=True, kw_only=True, repr=False)
class EvalRecord(abc.ABC):
    """One evaluated item of one model, of one of the kinds below."""

    kind: ClassVar[str]
    metric: ClassVar[Metric]

    model: EvaluatedModel
    evaluation: str
    """Name of the evaluation: "retrieval", "samples", "ppl", "ppl:yarn", "longppl"."""
    item: str
    """Name that is unique among all items of all evaluations; the same for every model."""
    settings: str
    """Fingerprint of the evaluation: items with different settings are never put together."""
    seq_len: int
    """Nominal length of the text, in tokens."""
    cluster: Cluster
    protocol: dict[str, Any] = field(default_factory=dict)
    """The settings of which `settings` is the fingerprint, by name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further facts for people, plain JSON."""

    @property
    @abc.abstractmethod
    def measurement(self) -> Measurement:
        """The measurement that the record is a part of."""

    @property
    def beyond_window(self) -> bool:
        return self.seq_len > self.model.window

    def __repr__(self) -> str:
        """Short, as lists of records are printed in notebooks; `to_json` has everything."""
        name, seq_len, _ = self.measurement
        what = f"{name} at {seq_len:,} tokens, {self.model.label}: {self.outcome}"
        return f"{type(self).__name__}({what})"

    @property
    @abc.abstractmethod
    def outcome(self) -> str:
        """How it went, in a few words."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON; what has its default value is left out."""
        return {"kind": self.kind, **encode(self)}

    def columns(self) -> dict[str, Any]:
        """All parts in one flat dict of plain JSON, for a table with one row per record.

        Fields of `cluster` and `estimator` carry its name; "method" is the model's label.
        """
        flat: dict[str, Any] = {"method": self.model.label}
        for f in dataclasses.fields(self):
            part = getattr(self, f.name)
            prefix = f"{f.name}_" if f.name in ("cluster", "estimator") else ""
            if dataclasses.is_dataclass(part):
                flat |= {
                    prefix + inner.name: encode(getattr(part, inner.name))
                    for inner in dataclasses.fields(part)
                }
            elif f.name not in ("protocol", "facts"):
                flat[f.name] = part
        return flat | self.facts


@typing.final
@dataclass(frozen=True, kw_only=True, repr=False)
class AnswerRecord(EvalRecord):
    """The answer to one question about a text."""

    kind = "answer"
    metric = "accuracy"
    question: Question
    scores: AnswerScores

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.question.task, self.seq_len, self.metric)

    @property
    def outcome(self) -> str:
        return "right" if self.scores.correct else f"score {self.scores.score:g}"


@typing.final
@dataclass(frozen=True, kw_only=True, repr=False)
class LossRecord(EvalRecord):
    """The losses of one text."""

    kind = "losses"
    metric = "perplexity"
    estimator: LossEstimator
    scores: LossScores

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.evaluation, self.seq_len, self.metric)

    @property
    def outcome(self) -> str:
        nats = self.scores.nll / max(self.scores.count, 1)
        return f"{nats:.4g} nats per token over {self.scores.count:,}"


@typing.final
@dataclass(frozen=True, kw_only=True, repr=False)
class RecoveryRecord(EvalRecord):
    """How likely the right answer is in a text, with its needle alone, and without it."""

    kind = "recovery"
    metric = "recovery"
    question: Question
    scores: RecoveryScores

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.evaluation, self.seq_len, self.metric)

    @property
    def outcome(self) -> str:
        scores = self.scores
        return f"{scores.nll:.4g} nats, {scores.nll_without:.4g} without its needle"


LARGEST_LOSS = 700.0
"""Nats per token; exp of a larger loss overflows."""
KINDS: dict[str, type[EvalRecord]] = {
    kind.kind: kind for kind in (AnswerRecord, LossRecord, RecoveryRecord)
}


def from_json(value: Any) -> EvalRecord:
    """The record that `to_json` wrote. Raises ValueError that says which part is wrong."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind is {str(kind)[:50]!r}, not one of {', '.join(KINDS)}")
    parts = {name: part for name, part in value.items() if name != "kind"}
    record = decode(KINDS[kind], parts, "record")
    _check_counts(record)
    return record


def _check_counts(record: EvalRecord) -> None:
    """Raise ValueError for counts and losses that no text can have."""
    counts: dict[str, int | None] = {
        "window": record.model.window - 1,
        "seq_len": record.seq_len - 1,
        "steps": record.model.steps,
    }
    if isinstance(record, AnswerRecord):
        counts |= {
            "tokens": record.question.tokens,
            "distance": record.question.distance,
            "choices": record.scores.choices - 1,
            "score": 0 if 0 <= record.scores.score <= 1 else -1,
        }
        counts |= {"distances": min(record.question.distances, default=0)}
        if not record.scores.correct and record.scores.failure is None:
            raise ValueError("failure is missing, though the answer is wrong")
    if isinstance(record, LossRecord):
        scores = record.scores
        counts |= {"count": scores.count, "num_bytes": scores.num_bytes}
        _check_losses("nll", (scores.nll,), (scores.count,))
        if scores.windows:
            _check_losses("windows", scores.windows.nll, scores.windows.count)
        if by_position := scores.by_position:
            _check_losses("by_position", by_position.nll, by_position.count)
            if len(by_position.edges) != len(by_position.nll) + 1:
                raise ValueError("by_position has not one more edge than bins")
    if isinstance(record, RecoveryRecord):
        nats = record.scores
        counts |= {"count": nats.count - 1, "tokens": record.question.tokens}
        _check_losses("scores", (nats.nll, nats.nll_without, nats.nll_alone), (nats.count,) * 3)
    for name, count in counts.items():
        if count is not None and count < 0:
            raise ValueError(f"{name} is too small")


def _check_losses(name: str, nll: Sequence[float], counts: Sequence[int]) -> None:
    if len(nll) != len(counts):
        raise ValueError(f"{name} has not a count for every loss")
    for loss, count in zip(nll, counts, strict=True):
        if count < 0 or loss > LARGEST_LOSS * max(count, 1):
            raise ValueError(f"{name} has a loss of {loss:g} nats over {count} tokens")


def distinct_titles(records: Iterable[EvalRecord], title: Callable[[Any], str]) -> dict[str, str]:
    """The title of each settings among records; equal ones say in brackets what differs.

    Example: "passkey [task=Passkey(wording=code)]" next to "passkey [task=Passkey]".
    """
    first: dict[str, EvalRecord] = {}
    for record in records:
        first.setdefault(record.settings, record)
    titles = {settings: title(record) for settings, record in first.items()}
    by_title: dict[str, list[EvalRecord]] = {}
    for settings, record in first.items():
        by_title.setdefault(titles[settings], []).append(record)
    for same in by_title.values():
        for record in same if len(same) > 1 else ():
            titles[record.settings] += f" [{_difference(record, same)}]"
    return titles


def _difference(record: EvalRecord, others: Iterable[EvalRecord]) -> str:
    """The settings of a record that are not the same in all others; else the fingerprint."""
    different = [
        f"{name}={value}"
        for name, value in record.protocol.items()
        if any(other.protocol.get(name) != value for other in others)
    ]
    return ", ".join(different) or record.settings


def read_records(path: str | Path) -> list[EvalRecord]:
    """The records of a records.jsonl, in order; none if the file does not exist.

    A torn last line is dropped. Raises ValueError naming the file and the line of a bad record.
    """
    return parse_records(read_jsonl(path), path)


def parse_records(values: Iterable[Any], path: str | Path) -> list[EvalRecord]:
    """The records of the parsed lines of the file `path`; errors as in `read_records`."""
    records = []
    for number, value in enumerate(values, 1):
        try:
            records.append(from_json(value))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}, is not an evaluation record of this version: {error}. "
                "Move the file away and evaluate again"
            ) from None
    return records
