"""The interface of evaluations: named items, the same for every model, and a record for each."""

import abc
import dataclasses
import functools
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from ctxext.attention.length import check_generation
from ctxext.attention.pieces import Attention
from ctxext.data.content import content_sha256
from ctxext.data.sources import TextSource, text_on_disk
from ctxext.evals.budget import Budget
from ctxext.evals.record import EvalRecord, EvaluatedModel, Measurement
from ctxext.methods import label

T = TypeVar("T")


class ModelConfig(Protocol):
    """The part of a model's configuration that evaluations read."""

    @property
    def max_position_embeddings(self) -> int: ...


class Model(Protocol):
    """The part of `ctxext.LM` that evaluations use, so that an oracle can take its place."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def stop_ids(self) -> Sequence[int]: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def scaling(self) -> Any: ...

    @property
    def base_scaling(self) -> Any: ...

    @property
    def attention(self) -> Any: ...

    @property
    def semantics(self) -> str: ...

    def loss(self, tokens: Any) -> Any: ...

    def continuations(
        self,
        prompts: Any,
        prefixes: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> tuple[Any, Any]: ...


def evaluated_model(
    lm: Model, *, steps: int = 0, train_seq_len: int | None = None
) -> EvaluatedModel:
    """Describe a model for its records. The caller states which training its weights have had."""
    follows_length = lm.scaling.depends_on_length or lm.attention.depends_on_length
    return EvaluatedModel(
        window=lm.config.max_position_embeddings,
        rope=label([lm.scaling]),
        base_rope=label([lm.base_scaling]),
        attention=label([lm.attention]),
        steps=steps,
        train_seq_len=train_seq_len,
        dtype=getattr(lm, "dtype", "float32"),
        bos=lm.tokenizer.adds_bos,
        # Elsewhere nothing follows the length, and all semantics are one.
        semantics=lm.semantics if follows_length else "incremental",
        without_bos=getattr(lm.tokenizer, "why_without_bos", ""),
    )


@dataclass(frozen=True)
class Eval(abc.ABC):
    """Yields one record per item.

    An item's name holds everything that decides its prompt, except the tokenizer.
    """

    type_tag: ClassVar[str] = "eval/"
    name: ClassVar[str]
    continues_prompts: ClassVar[bool] = False
    """It asks a model to write, or for the loss of answers, by `Model.continuations`."""

    @property
    def title(self) -> str:
        """The name in progress output."""
        return self.name

    @property
    def full_title(self) -> str:
        """The title that tells the evaluations of a suite apart."""
        return self.title

    @property
    def required_tokens(self) -> int:
        """Tokens that each document it reads must have, without BOS and EOS; 0: any number."""
        return 0

    @abc.abstractmethod
    def _protocol(self) -> dict[str, Any]:
        """Everything but lengths and numbers that decides the items, by name.

        Items are named by its fingerprint: another order of the same values makes other questions.
        """

    @property
    def _settings(self) -> str:
        return fingerprint(*self._protocol().values())

    @property
    def protocol(self) -> dict[str, Any]:
        """The same as plain JSON, for records: `settings` is its fingerprint.

        `text` is the beginning of the hash of the source's content.
        """
        values = self._protocol()
        plain = {name: plain_setting(value) for name, value in values.items()}
        source = values.get("source")
        content = source.content_sha256() if isinstance(source, TextSource) else ""
        return {**plain, "text": content[:8]} if content else plain

    @abc.abstractmethod
    def items(self) -> list[str]:
        """Names of all items, in order. Adding samples, lengths or depths keeps the old names."""

    @abc.abstractmethod
    def measurements(self) -> list[Measurement]:
        """The quantity that the records measure, at each length. Controls measure nothing."""

    @abc.abstractmethod
    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[EvalRecord]:
        """Evaluate the named items; `model` describes `lm` in the records."""

    def read_only_by(self, model: Model) -> "Eval":
        """The same evaluation with `model` in place of every other model that it would ask."""
        return self

    def within(self, budget: Budget) -> "Eval":
        """The same evaluation of no more texts and questions than a budget asks; never of others.

        By default it is asked as a whole.
        """
        return self

    def fitted(self, tokenizer: Any) -> "Eval":
        """The same evaluation of as many texts as there are, where fewer than asked for will do."""
        return self

    def check_attention(self, attention: Attention) -> None:
        """Raise ValueError for attention that cannot answer it; a run asks before it starts."""
        if self.continues_prompts:
            try:
                check_generation(attention)
            except ValueError as error:
                raise ValueError(f"{self.full_title}: {error}, or leave this one out") from error

    def check(self, tokenizer: Any) -> None:  # noqa: B027, most evaluations always fit
        """Raise ValueError if items cannot be built. A run calls this before it starts."""

    def __call__(self, lm: Model) -> Iterator[EvalRecord]:
        """All records."""
        return self.records(lm, self.items(), evaluated_model(lm))


def documents(source: TextSource, tokenizer: Any) -> list[np.ndarray]:
    """The token ids of every document, cached for the next evaluation with the same tokenizer."""
    return _documents(source, tokenizer, source.content_sha256())


@functools.lru_cache(maxsize=4)
def _documents(source: TextSource, tokenizer: Any, content: str) -> list[np.ndarray]:
    return source.open(tokenizer).documents()


def num_bytes(tokenizer: Any, ids: np.ndarray) -> int:
    """UTF-8 bytes of the text of token ids."""
    return len(tokenizer.decode(ids.tolist()).encode())


def ids_sha256(ids: np.ndarray) -> str:
    """Hash of token ids, the same on every machine."""
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()


def fingerprint(*parts: Any) -> str:
    """Eight hex digits of the parts' reprs: frozen dataclasses, numbers and strings.

    The content of a text on disk stands for its path, so that a text that was changed makes other
    items, and one that was moved the same. Raises ValueError for a text that is not there.
    """
    # Item names seed their questions, so a field that was renamed keeps its first name here, and
    # the wording that was the only one before there was another has none.
    settings = repr(parts).replace("max_new_tokens=", "room=").replace(", wording='code'", "")
    settings = settings.replace(", chat_template=None", "")  # as before it was a field
    for text in text_on_disk(parts):
        content = content_sha256(text.path, text.split)
        settings = settings.replace(repr(text.path), repr(content))
    return hashlib.sha256(settings.encode()).hexdigest()[:8]


def plain_setting(value: Any) -> Any:
    """A setting as plain JSON; a dataclass is its name with what differs from the defaults."""
    if isinstance(value, tuple):
        return [plain_setting(item) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed = [
        f"{field.name}={plain_setting(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if field.repr and getattr(value, field.name) != field.default
    ]
    return type(value).__name__ + (f"({', '.join(changed)})" if changed else "")


def item_rng(item: str) -> np.random.Generator:
    """The random stream that belongs to an item."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(item.encode()).digest()[:16], "big"))


def batches(items: Sequence[T], limit: int) -> Iterator[list[T]]:
    """Split items into batches of nearly equal size, at most `limit` each.

    A model pads every batch to one power of two; sizes are chosen so that padding adds at most
    a quarter.
    """
    if not items:
        return
    powers = [2**i for i in range(max(1, limit).bit_length())]
    # A batch of one next to batches of two would be a second shape to compile; larger batches
    # whose sizes differ by one are padded to the same size.
    fitting = [
        size
        for size in powers
        if -(-len(items) // size) * size <= 1.25 * len(items) and (size != 2 or len(items) % 2 == 0)
    ]
    num_batches = -(-len(items) // fitting[-1])
    for batch in np.array_split(np.arange(len(items)), num_batches):
        yield [items[i] for i in batch]
