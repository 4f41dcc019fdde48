"""The contract of retrieval tasks: questions exact to the token, and training rows made of many.

A task is one file in this package. It declares its command-line name and how an evaluation suite
asks it; `task_classes` finds it.
"""

import abc
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from ctxext.tasks.building.scores import Metric
from ctxext.tokenization.protocol import TokenizerLike

FILLER_WEIGHT = 0.1
"""Loss weight of haystack text in a training row, against 1 for answers: enough to keep the
language without drowning the answers."""

Haystack = Sequence[np.ndarray]
"""One array of token ids per document, without BOS."""

ProseOrCode = Literal["prose", "code"]
"""The wording of a task that has two. prose: sentences about things, which no model can read as a
numbered list. code: comments such as `# key K=48213`, for a base that knows nothing else; a model
of language may take them for a series, and continue it with the next number."""

SuiteLayout = Literal["depths", "shared-context", "whole-text", "shared-text"]
"""How a suite asks a task: one text per question and depth; one text for the questions of all
depths; one text per question, without a depth; one text for as many questions as the suite has
depths, which do not have one."""


@dataclass(frozen=True)
class TaskContext:
    """The stream, tokenizer and text that questions and training rows are drawn from."""

    rng: np.random.Generator
    tokenizer: TokenizerLike
    haystack: Haystack

    def encode(self, text: str) -> list[int]:
        """The ids of `text` inside a document (`encode_fragment`)."""
        return encode_fragment(self.tokenizer, text)

    @functools.cached_property
    def newline(self) -> list[int]:
        return self.encode("\n")

    @functools.cached_property
    def bos(self) -> list[int]:
        """The ids that every prompt and row starts with (`bos_prefix`)."""
        return bos_prefix(self.tokenizer)

    def draw_haystack(self, count: int) -> tuple[np.ndarray, list[list[int]]]:
        """`count` tokens of running text and their excerpts (`draw_haystack`)."""
        return draw_haystack(self.rng, self.haystack, count)

    def draw_depth(self, depth: float | None) -> float:
        """`depth`, or a uniform draw from 0..1 where it is None."""
        return float(self.rng.random()) if depth is None else depth


class Example(NamedTuple):
    """One question: prompt and `max_new_tokens` together have the requested length, BOS included.

    prompt: int32[P], starting with BOS where the tokenizer adds one; answer: int32[A], the right
    continuation; depth: where the answer is in the haystack, 0..1, as achieved; meta: plain JSON
    values, among them `needles` (the spans [start, length] of the prompt that the answer depends
    on), `distance` (tokens from the first needle to the end of the prompt) and the `haystack`
    excerpts; max_new_tokens: the most tokens a model may write.
    """

    prompt: np.ndarray
    answer: np.ndarray
    depth: float
    meta: dict[str, Any]
    max_new_tokens: int
    metric: Metric = "exact"
    """How the written text is scored; "exact" compares its first ids with `answer`."""
    references: tuple[str, ...] = ()
    """Texts of right answers, for every other metric."""
    distractors: tuple[str, ...] = ()
    """Wrong values that occur in the prompt (for the metric "label": the other labels)."""
    choices: tuple[np.ndarray, ...] = ()
    """Wrong continuations, int32 each: a K-way choice is among these and `answer`."""
    stop_at_newline: bool = False
    """Only the first line that is written counts."""
    stem: str = ""
    """The end of the prompt, where a metric reads it as the beginning of the written text."""
    num_shared_tokens: int = 0
    """Length of the prefix shared with the other questions about this text; 0: nothing shared."""


class SuiteOptions(NamedTuple):
    """The options of a suite by which it chooses the settings of a task."""

    min_seq_len: int
    """Tokens of the shortest length."""
    questions: Path | None = None
    """The file given as --questions."""
    wording: ProseOrCode = "prose"
    """The wording of --wording, for tasks that have two."""


@dataclass(frozen=True)
class Task(abc.ABC):
    """A generator of questions about long texts, pure in its random stream.

    Everything that the wording depends on is a field.
    """

    type_tag: ClassVar[str] = "task/"
    name: ClassVar[str]
    """Its name on the command line and in records."""
    suite_layout: ClassVar[SuiteLayout] = "depths"
    supports_shared_context: ClassVar[bool] = False

    @property
    def tokens_per_question(self) -> int:
        """Room in the shortest text for each of several questions, where a suite shares texts."""
        return 64

    @classmethod
    def suite_names(cls) -> tuple[str, ...]:
        """The names that `--evals` knows it by; empty for a task that is only trained."""
        return (cls.name,)

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> "tuple[Task, ...]":
        """The tasks asked under `suite_name`, one of `suite_names()`.

        Raises ValueError if an option that it needs is missing.
        """
        return (cls(),)

    @abc.abstractmethod
    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        """One question of exactly `seq_len` tokens, answer included; depth None: drawn.

        seq_len None: no haystack, only needles, distractors and the question. Raises ValueError if
        it does not fit.
        """

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """One question per depth about a single text, which a model then reads only once.

        The longest has exactly `seq_len` tokens. Raises ValueError if the task asks one question
        per text, or if it does not fit.
        """
        raise ValueError(f"{self.name} asks one question about each text: leave shared_context out")


@dataclass(frozen=True)
class SharedContextTask(Task):
    """A task that can ask several questions about one text."""

    supports_shared_context: ClassVar[bool] = True

    @abc.abstractmethod
    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]: ...

    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        return self.shared_examples(context, seq_len, [depth])[0]


@dataclass(frozen=True)
class TrainingTask(Task):
    """A task that can also be trained."""

    @abc.abstractmethod
    def training_row(self, context: TaskContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens int32[length] and weights float32[length], the loss weight of each as a target."""


def as_ids(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Token ids as int32."""
    return np.asarray(ids, np.int32)


def encode_fragment(tokenizer: TokenizerLike, text: str) -> list[int]:
    """The ids of `text` inside a document, so that the ids of several fragments may be joined.

    A SentencePiece tokenizer puts a space before the text it encodes; encoding after a newline and
    cutting the newline off again leaves none. Joined fragments are never encoded a second time.
    """
    newline = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else tokenizer.encode(text)


def bos_prefix(tokenizer: TokenizerLike) -> list[int]:
    """The first ids of every prompt, row and window: BOS where the tokenizer adds one."""
    return [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []


def without_needles(
    examples: Sequence[Example],
    rng: np.random.Generator,
    haystack: Haystack,
    *,
    of: Sequence[Example] | None = None,
) -> list[Example]:
    """The same questions about one text with haystack text in place of all their needles.

    An answer that is still right was guessed. of: only the needles of these questions.
    """
    prompts = [example.prompt.copy() for example in examples]
    replaceable = examples if of is None else of
    spans = {(start, size) for example in replaceable for start, size in example.meta["needles"]}
    replaced = []
    for start, size in sorted(spans):
        text, excerpts = draw_haystack(rng, haystack, size)
        replaced += excerpts
        for prompt in prompts:
            prompt[start : start + size] = text
    return [
        example._replace(prompt=prompt, meta={**example.meta, "in_place_of_needle": replaced})
        for example, prompt in zip(examples, prompts, strict=True)
    ]


def draw_haystack(
    rng: np.random.Generator, haystack: Haystack, count: int
) -> tuple[np.ndarray, list[list[int]]]:
    """`count` tokens of running text, int32[count], and its excerpts [document, start, length].

    Documents are drawn in proportion to their length and entered at a random token; an excerpt that
    reaches the end of its document is followed by another. Raises ValueError without any text.
    """
    sizes = np.array([len(document) for document in haystack], np.float64)
    if not sizes.sum():
        raise ValueError("the haystack is empty: give at least one document with text in it")
    excerpts: list[list[int]] = []
    missing = count
    while missing:
        document = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
        start = int(rng.integers(len(haystack[document])))
        length = min(missing, len(haystack[document]) - start)
        excerpts.append([document, start, length])
        missing -= length
    text = [as_ids(haystack[d][s : s + n]) for d, s, n in excerpts]
    return np.concatenate([np.zeros(0, np.int32), *text]), excerpts
