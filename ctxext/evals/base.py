"""What an evaluation is: named items, the same for every model and method, and a JSON row for each."""

import abc
import functools
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from ctxext.data.sources import TextSource

T = TypeVar("T")


class Window(Protocol):
    """The part of a model's configuration that evaluations read."""

    @property
    def max_position_embeddings(self) -> int: ...


class Model(Protocol):
    """The part of `ctxext.LM` that evaluations use, so that an oracle can stand in."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def config(self) -> Window: ...

    def loss(self, tokens: Any) -> Any: ...

    def continuations(
        self,
        prompts: Any,
        prefixes: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Eval(abc.ABC):
    """Yields a row per item; an item's name says all that decides its prompt, the tokenizer apart."""

    type_tag: ClassVar[str] = "eval/"
    name: ClassVar[str]

    @property
    def title(self) -> str:
        """What progress calls it."""
        return self.name

    @abc.abstractmethod
    def items(self) -> list[str]:
        """Names of all items, in order. Adding samples, lengths or depths keeps the old names."""

    @abc.abstractmethod
    def rows(self, lm: Model, items: Collection[str]) -> Iterator[dict[str, Any]]:
        """Rows (plain JSON values, with `eval`, `item`, `seq_len`) of the named items."""

    def check(self, tokenizer: Any) -> None:  # noqa: B027, most have nothing that could be too long
        """Raises ValueError if its items cannot be built, as far as a few of them show; what a run asks first."""

    def __call__(self, lm: Model) -> Iterator[dict[str, Any]]:
        """All rows."""
        return self.rows(lm, self.items())


@functools.lru_cache(maxsize=4)
def documents(source: TextSource, tokenizer: Any) -> list[np.ndarray]:
    """The token ids of every document, kept for the next evaluation with the same tokenizer."""
    return source.open(tokenizer).documents()


def choose(
    evaluation: Eval, order: str, *, source: TextSource, tokenizer: Any, count: int, needed: int
) -> list[tuple[int, np.ndarray]]:
    """Numbers and ids of the first `count` documents that have `needed` tokens, shuffled by the name `order`.

    Raises ValueError if there are fewer.
    """
    texts = documents(source, tokenizer)
    chosen = [
        (int(i), texts[i])
        for i in item_rng(order).permutation(len(texts))
        if len(texts[i]) >= needed
    ]
    if len(chosen) < count:
        raise ValueError(
            f"{evaluation.title}: {len(chosen)} of {len(texts)} documents have the {needed} tokens that "
            "the longest length, or min_tokens, needs: lower that or num_documents"
        )
    return chosen[:count]


def num_bytes(tokenizer: Any, ids: np.ndarray) -> int:
    """UTF-8 bytes of the text of token ids."""
    return len(tokenizer.decode(ids.tolist()).encode())


def fingerprint(*parts: Any) -> str:
    """Eight hex digits of the parts' reprs: frozen dataclasses, numbers and strings."""
    # Item names seed their questions, so a field that was renamed keeps its first name here.
    text = repr(parts).replace("max_new_tokens=", "room=")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def item_rng(item: str) -> np.random.Generator:
    """A random stream of the item's own."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(item.encode()).digest()[:16], "big"))


def batches(items: Sequence[T], limit: int) -> Iterator[list[T]]:
    """Batches of nearly equal size below `limit`; a model pads them all to one power of two, by at most a quarter."""
    sizes = [2**i for i in range(max(1, limit).bit_length())]
    # A part of one among pairs would be a second shape; larger parts that differ by one pad to the same size.
    fits = [
        s
        for s in sizes
        if -(-len(items) // s) * s <= 1.25 * len(items) and (s != 2 or len(items) % 2 == 0)
    ]
    size = fits[-1]
    for part in np.array_split(np.arange(len(items)), -(-len(items) // size)) if items else ():
        yield [items[i] for i in part]
