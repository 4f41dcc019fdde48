"""What a retrieval task is: an exam question that is exact to the token, and a training row made of many of them."""

import abc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from ctxext.tasks.building.scores import Metric

FILLER_WEIGHT = 0.1
"""Weight of haystack text against 1 for answers in a training row: keeps the language, does not drown the answers."""

Haystack = Sequence[np.ndarray]
"""One array of token ids per document, without BOS."""


class Encoder(Protocol):
    """The part of a tokenizer that tasks use."""

    @property
    def bos_id(self) -> int | None: ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str, *, bos: bool = False) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class Example(NamedTuple):
    """One exam question: the prompt and the room for its answer are the requested length, BOS counted.

    prompt: int32[P] starts with BOS where the tokenizer has one; answer: int32[A], the right continuation; depth: where
    what is asked for sits in the haystack, 0..1, as achieved; meta: plain JSON values, among them `needles`, the spans
    [start, length] of the prompt that the answer depends on, `distance`, the tokens from the first of them to the end
    of the prompt, and the `haystack` pieces.
    """

    prompt: np.ndarray
    answer: np.ndarray
    depth: float
    meta: dict[str, Any]
    metric: Metric = "exact"
    """How what is written is scored; "exact" wants the very ids of `answer` first."""
    references: tuple[str, ...] = ()
    """Texts of right answers, for every other metric."""
    decoys: tuple[str, ...] = ()
    """Wrong values that stand in the prompt (for the metric "label": the other labels)."""
    choices: tuple[np.ndarray, ...] = ()
    """Wrong continuations int32[..]: the K-way choice is among these and `answer`."""
    room: int = 0
    """Tokens kept free for what is written; 0: as many as `answer` has."""
    line: bool = False
    """What is written counts up to the end of its first line."""
    shared: int = 0
    """How many tokens the prompt has in common with the other questions of its exam; 0: all are its own."""

    @property
    def budget(self) -> int:
        """The tokens that are written at most."""
        return self.room or len(self.answer)


@dataclass(frozen=True)
class Task(abc.ABC):
    """A generator of questions about a long text, pure in `rng`; its fields are all that its wording depends on."""

    type_tag: ClassVar[str] = "task/"
    name: ClassVar[str]
    supports_shared_context: ClassVar[bool] = False
    """Whether `exam` can ask several questions about one text."""

    @abc.abstractmethod
    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """One question of exactly `seq_len` tokens, room for the answer included; depth None: drawn.

        seq_len None: no haystack at all, the shortest prompt with what is asked, other records and the question.
        Raises ValueError if it cannot fit.
        """

    def exam(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depths: Sequence[float],
        haystack: Haystack,
    ) -> list[Example]:
        """A question for each of `depths` about one text, so that a model reads it once; at most `seq_len` tokens each.

        Raises ValueError if the task asks one question a text, or if it cannot fit.
        """
        raise ValueError(f"{self.name} asks one question about each text: leave `together` out")


@dataclass(frozen=True)
class TrainingTask(Task):
    """A task that can also be trained."""

    @abc.abstractmethod
    def training_row(
        self, rng: np.random.Generator, tokenizer: Encoder, length: int, haystack: Haystack
    ) -> tuple[np.ndarray, np.ndarray]:
        """tokens int32[length], weights float32[length]: weights[t] is the loss weight of token t as a target."""


def encode_piece(tokenizer: Encoder, text: str) -> list[int]:
    """The ids of `text` as it reads inside a document, so that the ids of pieces may be joined.

    A SentencePiece tokenizer puts a space before the text it is given; encoding after a newline and cutting the
    newline off again leaves none. Joined pieces are never encoded a second time.
    """
    newline = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else tokenizer.encode(text)


def beginning(tokenizer: Encoder) -> list[int]:
    """What every prompt, row and window starts with: BOS where the tokenizer has one."""
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def without_needle(example: Example, rng: np.random.Generator, haystack: Haystack) -> Example:
    """The same prompt with haystack text where the needles were: who is right now has guessed."""
    return without_needles([example], rng, haystack)[0]


def without_needles(
    examples: Sequence[Example], rng: np.random.Generator, haystack: Haystack
) -> list[Example]:
    """The questions of one exam with haystack text where any of their needles was."""
    prompts, replaced = [example.prompt.copy() for example in examples], []
    for start, size in sorted(
        {(start, size) for example in examples for start, size in example.meta["needles"]}
    ):
        text, pieces = draw_haystack(rng, haystack, size)
        replaced += pieces
        for prompt in prompts:
            prompt[start : start + size] = text
    return [
        example._replace(prompt=prompt, meta={**example.meta, "in_place_of_needle": replaced})
        for example, prompt in zip(examples, prompts, strict=True)
    ]


def draw_haystack(
    rng: np.random.Generator, haystack: Haystack, count: int
) -> tuple[np.ndarray, list[list[int]]]:
    """`count` tokens of running text: int32[count] and its pieces [document, start, length].

    Documents are drawn in proportion to their length, each entered at a random place; a piece that ends with its
    document is followed by another. ValueError without text.
    """
    sizes = np.array([len(document) for document in haystack], np.float64)
    if not sizes.sum():
        raise ValueError("the haystack is empty: give at least one document with text in it")
    pieces: list[list[int]] = []
    missing = count
    while missing:
        document = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
        start = int(rng.integers(len(haystack[document])))
        length = min(missing, len(haystack[document]) - start)
        pieces.append([document, start, length])
        missing -= length
    text = [np.asarray(haystack[d][s : s + n], np.int32) for d, s, n in pieces]
    return np.concatenate([np.zeros(0, np.int32), *text]), pieces
