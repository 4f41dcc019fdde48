"""What a retrieval task is: an exam question that is exact to the token, and a training row made of many of them."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

FILLER_WEIGHT = 0.1
"""Weight of haystack text against 1 for answers in a training row: keeps the language, does not drown the answers."""

Haystack = Sequence[np.ndarray]
"""One array of token ids per document, without BOS."""


class Encoder(Protocol):
    """The part of a tokenizer that tasks use."""

    @property
    def bos_id(self) -> int | None: ...

    def encode(self, text: str, *, bos: bool = False) -> list[int]: ...


class Example(NamedTuple):
    """One exam question: `len(prompt) + len(answer)` is the requested length, BOS counted.

    prompt: int32[P] starts with BOS where the tokenizer has one; answer: int32[A]; depth: where the asked record sits
    in the haystack, 0..1, as achieved; meta: plain JSON values (name, value, needle, distance, haystack pieces).
    """

    prompt: np.ndarray
    answer: np.ndarray
    depth: float
    meta: dict[str, Any]


@dataclass(frozen=True)
class Task(abc.ABC):
    """A generator of retrieval questions, pure in `rng`; its fields are all that its wording depends on."""

    name: ClassVar[str]

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
        """One question of exactly `seq_len` tokens, answer included; depth None: drawn. ValueError if it cannot fit.

        seq_len None: no haystack at all, the shortest prompt with what is asked, other records and the question.
        """

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
    """The same prompt with haystack text where the needle was: who is right now has guessed."""
    start, size = example.meta["needle"], example.meta["needle_tokens"]
    text, pieces = draw_haystack(rng, haystack, size)
    prompt = np.concatenate([example.prompt[:start], text, example.prompt[start + size :]])
    return example._replace(prompt=prompt, meta={**example.meta, "in_place_of_needle": pieces})


def draw_haystack(rng: np.random.Generator, haystack: Haystack, count: int) -> tuple[np.ndarray, list[list[int]]]:
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
