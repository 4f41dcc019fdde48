"""Tokenized data: training rows, and documents as one array of ids."""

import abc
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.data.held_out import HeldOut
from ctxext.data.packing import Packing
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

    def made_of(self) -> Iterator["Rows"]:
        """The rows that these are made from."""
        for value in vars(self).values():
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, Rows):
                    yield part

    def notes(self, seq_len: int) -> Iterator[str]:
        """Sentences about what rows of `seq_len` tokens train, leave out or cut off."""
        for part in self.made_of():
            yield from part.notes(seq_len)

    def longest_text(self, seq_len: int) -> int:
        """Tokens of the longest text in a row of `seq_len` tokens that no other text interrupts."""
        return max((part.longest_text(seq_len) for part in self.made_of()), default=seq_len)


def corpora(rows: Rows) -> Iterator["Corpus"]:
    """Every corpus that rows are made from."""
    if isinstance(rows, Corpus):
        yield rows
        return
    for part in rows.made_of():
        yield from corpora(part)


class Corpus(Rows):
    """Documents as one flat array of token ids.

    Document i is ids[offsets[i] : offsets[i + 1]], BOS and EOS included. bos_id, eos_id: the first
    and last id of each document, None for neither. domains: how many documents come from each
    source, in order; empty: one source. num_ids: the ids are below it, which is checked where they
    are read; None: they are known to be. facts: the provenance. held_out: the documents of the same
    text that training does not see, where it is a part of one. is_answer: bool[tokens], the tokens
    that are trained, where not all are; rows then have whole documents (`packing`).
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
        is_answer: np.ndarray | None = None,
    ) -> None:
        self.ids = ids
        self.offsets = offsets
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.domains = tuple(domains) or (len(offsets) - 1,)
        self.facts = facts
        self.held_out = held_out
        self.is_answer = is_answer
        self._num_ids = num_ids
        self._packings: dict[int, Packing] = {}

    @classmethod
    def from_answers(
        cls,
        answered: Iterable[tuple[Sequence[int], np.ndarray]],
        tokenizer: TokenizerLike,
        *,
        facts: dict[str, Any],
    ) -> "Corpus":
        """Conversations as (ids, which of them are of answers), of which only answers are trained.

        facts: what else decides about them, for the provenance.
        """
        dtype = id_dtype(tokenizer.num_ids)
        documents: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        for ids, is_answer in answered:
            documents.append(np.array(ids, dtype))
            masks.append(is_answer)
        ids = np.concatenate([np.zeros(0, dtype), *documents])
        is_answer = np.concatenate([np.zeros(0, bool), *masks])
        offsets = np.cumsum([0, *map(len, documents)])
        content = ids.tobytes() + offsets.astype("<i8").tobytes() + is_answer.tobytes()
        facts = {
            "kind": "answers",
            "documents": len(documents),
            "tokens": len(ids),
            "answer_tokens": int(is_answer.sum()),
            "sha256": hashlib.sha256(content).hexdigest(),
            **facts,
        }
        return cls(
            ids,
            offsets,
            bos_id=tokenizer.bos_id if tokenizer.adds_bos else None,
            eos_id=None,  # a template ends an answer as it likes
            facts=facts,
            is_answer=is_answer,
        )

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
        `seq_len` + 1 tokens. Where only answers are trained, it is a row of whole documents, see
        `packing`.
        """
        if self.is_answer is not None:
            return self._packed_row(rng, seq_len, self.is_answer)
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

    def packing(self, seq_len: int) -> Packing:
        """The rows of `seq_len` tokens that are drawn where only answers are trained.

        Raises ValueError if no answer is within a row.
        """
        assert self.is_answer is not None
        if seq_len not in self._packings:
            packing = Packing.of(self.offsets, self.is_answer, seq_len)
            if not packing.rows:
                raise ValueError(
                    f"none of the {packing.num_without:,} chat or instruction records has an "
                    f"answer in its first {seq_len:,} tokens: give a larger train.seq_len"
                )
            self._packings[seq_len] = packing
        return self._packings[seq_len]

    def _packed_row(self, rng: np.random.Generator, seq_len: int, is_answer: np.ndarray) -> Row:
        rows = self.packing(seq_len).rows
        row = Row(
            *(np.zeros(seq_len, np.int32) for _ in range(2)),
            weights=np.zeros(seq_len, np.float32),
            segment_ids=np.zeros(seq_len, np.int32),
        )
        place = 0
        for segment, document in enumerate(rows[rng.integers(len(rows))], 1):
            start, stop = self.offsets[document : document + 2]
            stop = min(stop, start + seq_len + 1)
            ids = self.checked(self.ids[start:stop]).astype(np.int32)
            own = slice(place, place + len(ids) - 1)
            row.tokens[own] = ids[:-1]
            row.targets[own] = ids[1:]
            row.weights[own] = is_answer[start + 1 : stop] != 0
            row.segment_ids[own] = segment
            place = own.stop
        return row

    def notes(self, seq_len: int) -> Iterator[str]:
        if self.is_answer is not None:
            packing = self.packing(seq_len)
            yield packing.trained_note
            yield packing.note

    def longest_text(self, seq_len: int) -> int:
        # The last token of a document is a target only.
        return min(seq_len, int(np.diff(self.offsets).max(initial=1)) - 1)

    def provenance(self) -> dict[str, Any]:
        return self.facts
