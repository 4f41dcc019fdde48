"""Tokenized data: every kind answers one question, `row(rng, seq_len)`."""

import abc
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.tasks.base import TaskContext, TrainingTask
from ctxext.tokenization.protocol import TokenizerLike


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id: uint16 or uint32, little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Row(NamedTuple):
    """One training row, all [T]: targets[t] follows tokens[t]; segment 0 is padding; weights are 0 across documents."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segment_ids: np.ndarray


class Rows(abc.ABC):
    """A source made ready: endless rows, each a pure function of the generator it is given."""

    @abc.abstractmethod
    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        """One row of `seq_len` tokens."""

    @abc.abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What this data is, as plain JSON: equal on two machines only if every row is equal."""


class Corpus(Rows):
    """Documents as one flat array of token ids; document i is ids[offsets[i] : offsets[i + 1]], BOS and EOS included.

    bos_id, eos_id: what each document begins and ends with, None for nothing. domains: how many documents come from
    each source, in order; none: one source. facts: the provenance.
    """

    def __init__(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        *,
        bos_id: int | None,
        eos_id: int | None,
        facts: dict[str, Any],
        domains: Sequence[int] = (),
    ) -> None:
        self.ids, self.offsets, self.bos_id, self.eos_id = ids, offsets, bos_id, eos_id
        self.domains, self.facts = tuple(domains) or (len(offsets) - 1,), facts

    @classmethod
    def of(
        cls, texts: Iterable[str], tokenizer: TokenizerLike, *, files: dict[str, str] | None = None
    ) -> "Corpus":
        """Texts tokenized, each as BOS text EOS. Raises ValueError for a tokenizer without BOS."""
        if tokenizer.bos_id is None:
            raise ValueError(
                "training needs a tokenizer with a beginning-of-sequence token: name its bos_token"
            )
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        dtype = id_dtype(tokenizer.vocab_size)
        documents = [np.array([*tokenizer.encode(text, bos=True), *end], dtype) for text in texts]
        ids, offsets = (
            np.concatenate([np.zeros(0, dtype), *documents]),
            np.cumsum([0, *map(len, documents)]),
        )
        digest = hashlib.sha256(ids.tobytes() + offsets.astype("<i8").tobytes())
        facts = {
            "kind": "text",
            "documents": len(documents),
            "tokens": len(ids),
            "sha256": digest.hexdigest(),
            "files": files or {},
        }
        return cls(ids, offsets, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, facts=facts)

    def documents(self) -> list[np.ndarray]:
        """The token ids of every document without BOS and EOS."""
        begin, end = int(self.bos_id is not None), int(self.eos_id is not None)
        return [
            self.ids[a + begin : b - end]
            for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        """A window over all documents in a circle, starting anywhere: every token is seen equally often.

        A window that starts inside a document has BOS in place of its first token, as every prompt has.
        Raises ValueError if there are fewer than `seq_len` + 1 tokens.
        """
        if len(self.ids) < seq_len + 1:
            raise ValueError(
                f"the data has {len(self.ids)} tokens in all, a row needs {seq_len + 1}: give more text or a smaller"
                " train.seq_len"
            )
        where = (rng.integers(len(self.ids)) + np.arange(seq_len + 1)) % len(self.ids)
        ids = self.ids[where].astype(np.int32)
        if self.bos_id is not None:
            ids[0] = self.bos_id
        document = np.searchsorted(self.offsets, where, side="right")
        # A document that comes back at the end of the circle is another segment than its tail at the start.
        segments = 1 + np.cumsum(np.diff(document, prepend=document[0]) != 0)
        weights = (segments[1:] == segments[:-1]).astype(np.float32)
        return Row(ids[:-1], ids[1:], weights, segments[:-1].astype(np.int32))

    def provenance(self) -> dict[str, Any]:
        return self.facts


class TaskRows(Rows):
    """Rows of one synthetic task, its records hidden in a haystack."""

    def __init__(self, task: TrainingTask, tokenizer: TokenizerLike, haystack: Corpus) -> None:
        self.task, self.tokenizer, self.haystack = task, tokenizer, haystack
        self.texts = haystack.documents()

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        context = TaskContext(rng, self.tokenizer, self.texts)
        tokens, weights = self.task.training_row(context, seq_len + 1)
        return Row(tokens[:-1], tokens[1:], weights[1:], np.ones(seq_len, np.int32))

    def provenance(self) -> dict[str, Any]:
        return {
            "kind": "synthetic",
            "task": repr(self.task),
            "haystack": self.haystack.provenance(),
        }


class PackedRows(Rows):
    """Rows of `short` tokens one after another in each row, which do not see each other; the last may be cut off."""

    def __init__(self, rows: Rows, short: int) -> None:
        self.rows, self.short = rows, short

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        parts = [self.rows.row(rng, self.short) for _ in range(-(-seq_len // self.short))]
        before = np.cumsum([0, *(int(part.segment_ids.max()) for part in parts[:-1])])
        # Padding stays segment 0.
        segments = [
            np.where(part.segment_ids > 0, part.segment_ids + n, 0)
            for part, n in zip(parts, before, strict=True)
        ]
        whole = [
            part._replace(segment_ids=ids.astype(np.int32))
            for part, ids in zip(parts, segments, strict=True)
        ]
        return Row(*(np.concatenate(field)[:seq_len] for field in zip(*whole, strict=True)))

    def provenance(self) -> dict[str, Any]:
        return {"kind": "packed", "seq_len": self.short, "rows": self.rows.provenance()}


class MixedRows(Rows):
    """Every row comes from one of the parts, drawn by weight."""

    def __init__(self, parts: Sequence[tuple[float, Rows]]) -> None:
        total = sum(weight for weight, _ in parts)
        self.weights = [weight / total for weight, _ in parts]
        self.parts = [rows for _, rows in parts]

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        return self.parts[int(rng.choice(len(self.parts), p=self.weights))].row(rng, seq_len)

    def provenance(self) -> dict[str, Any]:
        parts = [rows.provenance() for rows in self.parts]
        return {"kind": "mix", "weights": self.weights, "parts": parts}
