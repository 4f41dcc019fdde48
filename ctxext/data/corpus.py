"""Tokenized data: training rows, and documents as one array of ids."""

import abc
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.data.held_out import HeldOut
from ctxext.tokenization.protocol import TokenizerLike


def id_dtype(num_ids: int) -> np.dtype:
    """The smallest type that holds every id: uint16 or uint32, little-endian."""
    return np.dtype("<u2" if num_ids <= 1 << 16 else "<u4")


def encode_document(
    tokenizer: TokenizerLike, text: str, *, bos: bool, eos: bool, parse_special: bool
) -> list[int]:
    """The token ids of a document, after one BOS and before one EOS where they are asked for.

    parse_special: special tokens that are written out in the text are those tokens; a BOS or EOS
    that the text has is not put there again.
    """
    if not parse_special:
        ids = tokenizer.encode(text, bos=bos)
    else:
        ids = tokenizer.encode(text, bos=bos, special=True)
    if eos and tokenizer.eos_id is not None and not (parse_special and ids[-1] == tokenizer.eos_id):
        ids.append(tokenizer.eos_id)
    return ids


class Row(NamedTuple):
    """One training row; every field is [T].

    tokens, targets: int32, targets[t] follows tokens[t]; weights: float32 loss weights, 0 across
    documents; segment_ids: int32, 0 is padding.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    segment_ids: np.ndarray


class TooLittleText(ValueError):
    """All text together has fewer tokens than a row."""

    def __init__(self, tokens: int, needed: int) -> None:
        self.tokens = tokens
        super().__init__(
            f"the data has {tokens:,} tokens in all, a row needs {needed:,}: give more text or a "
            "smaller train.seq_len"
        )


class Rows(abc.ABC):
    """An opened source: endless rows, each a pure function of the generator it is given."""

    @abc.abstractmethod
    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        """One row of `seq_len` tokens."""

    @abc.abstractmethod
    def provenance(self) -> dict[str, Any]:
        """A description of this data as plain JSON: equal only if every row is equal."""


def corpora(rows: Rows) -> Iterator["Corpus"]:
    """Every corpus that rows are made from."""
    if isinstance(rows, Corpus):
        yield rows
        return
    for value in vars(rows).values():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Rows):
                yield from corpora(part)


class Corpus(Rows):
    """Documents as one flat array of token ids.

    Document i is ids[offsets[i] : offsets[i + 1]], BOS and EOS included. bos_id, eos_id: the first
    and last id of each document, None for neither. domains: how many documents come from each
    source, in order; empty: one source. num_ids: the ids are below it, which is checked where they
    are read; None: they are known to be. facts: the provenance. held_out: the documents of the same
    text that training does not see, where it is a part of one.
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
        num_ids: int | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.ids = ids
        self.offsets = offsets
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.domains = tuple(domains) or (len(offsets) - 1,)
        self.facts = facts
        self.held_out = held_out
        self._num_ids = num_ids

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        tokenizer: TokenizerLike,
        *,
        files: dict[str, str] | None = None,
        parse_special: bool = False,
    ) -> "Corpus":
        """Tokenize texts, each as BOS text EOS; files: their names and hashes, for the provenance.

        Without BOS where the tokenizer adds none, without EOS where it has none. parse_special:
        special tokens that are written out in a text are those tokens.
        """
        dtype = id_dtype(tokenizer.num_ids)
        bos = tokenizer.adds_bos
        eos = tokenizer.eos_id is not None
        documents = [
            np.array(
                encode_document(tokenizer, text, bos=bos, eos=eos, parse_special=parse_special),
                dtype,
            )
            for text in texts
        ]
        ids = np.concatenate([np.zeros(0, dtype), *documents])
        offsets = np.cumsum([0, *map(len, documents)])
        digest = hashlib.sha256(ids.tobytes() + offsets.astype("<i8").tobytes())
        facts = {
            "kind": "text",
            "documents": len(documents),
            "tokens": len(ids),
            "sha256": digest.hexdigest(),
            "files": files or {},
        }
        bos_id = tokenizer.bos_id if bos else None
        return cls(ids, offsets, bos_id=bos_id, eos_id=tokenizer.eos_id, facts=facts)

    def documents(self) -> list[np.ndarray]:
        """The token ids of every document without BOS and EOS."""
        num_bos = int(self.bos_id is not None)
        num_eos = int(self.eos_id is not None)
        return [
            self.checked(self.ids[start + num_bos : stop - num_eos])
            for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)
        ]

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """The same ids. Raises ValueError for one that the tokenizer does not have."""
        if self._num_ids is not None and ids.size and ids.max() >= self._num_ids:
            raise ValueError(
                f"the data has the token id {ids.max()}, but the tokenizer has only "
                f"{self._num_ids} ids: the files are corrupt, prepare the text again"
            )
        return ids

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        """A window over all documents in a circle that starts anywhere.

        So every token is seen equally often. A window that starts inside a document has BOS in
        place of its first token, as every prompt has. Raises ValueError if there are fewer than
        `seq_len` + 1 tokens.
        """
        if len(self.ids) < seq_len + 1:
            raise TooLittleText(len(self.ids), seq_len + 1)
        indices = (rng.integers(len(self.ids)) + np.arange(seq_len + 1)) % len(self.ids)
        ids = self.checked(self.ids[indices]).astype(np.int32)
        if self.bos_id is not None:
            ids[0] = self.bos_id
        document = np.searchsorted(self.offsets, indices, side="right")
        # A document that comes back at the end of the circle is another segment than its tail at
        # the start.
        segments = 1 + np.cumsum(np.diff(document, prepend=document[0]) != 0)
        weights = (segments[1:] == segments[:-1]).astype(np.float32)
        return Row(ids[:-1], ids[1:], weights, segments[:-1].astype(np.int32))

    def provenance(self) -> dict[str, Any]:
        return self.facts
