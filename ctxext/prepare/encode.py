"""The work of one worker: a chunk of documents becomes a shard, without importing jax."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctxext.data.corpus import encode_document, id_dtype
from ctxext.data.documents import Document, Field, messages_of
from ctxext.data.held_out import HELD_OUT, split_of
from ctxext.data.token_files import SPLITS
from ctxext.files import atomic_file
from ctxext.prepare.chunks import Chunk
from ctxext.prepare.sources import option
from ctxext.tokenization.answers import encode_answers
from ctxext.tokenization.chat import Chat
from ctxext.tokenization.protocol import TokenizerLike
from ctxext.tokenization.tokenizer import Tokenizer

LITERAL = "special_as_text"
"""Counts the documents that spell special tokens, which are text there."""


@dataclass(frozen=True)
class Recipe:
    """How documents become tokens.

    field: the key or column of the text. bos: whether each document begins with BOS; None: as the
    tokenizer does. eos: whether it ends with EOS. min_tokens, max_tokens: shorter and longer
    documents are left out, counted with BOS and EOS. held_out: the share of documents, by the hash
    of their text, that training does not see; equal texts are on the same side in any order.
    parse_special: special tokens that are written out in a document are those tokens.
    chat_template: the text of the template by which chat and instruction records are written; it
    decides about BOS and EOS; None: documents are texts.
    """

    field: str = "text"
    bos: bool | None = None
    eos: bool = True
    min_tokens: int = 0
    max_tokens: int | None = None
    held_out: float = HELD_OUT
    parse_special: bool = False
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None and (self.eos or self.bos is not None):
            raise ValueError(
                "a chat template decides how a conversation begins and ends: leave bos out and eos "
                "false"
            )
        if self.chat_template is not None and self.parse_special:
            raise ValueError("--parse-special is for texts; a chat template writes special tokens")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held-out is a share from 0 to below 1, got {self.held_out}")
        if self.max_tokens is not None and self.max_tokens < max(self.min_tokens, 1):
            raise ValueError(
                f"--max-tokens {self.max_tokens} leaves nothing above --min-tokens "
                f"{self.min_tokens}"
            )

    @property
    def reader(self) -> Field:
        """What documents are read as."""
        return option(self.field, is_chat=self.chat_template is not None)

    def adds_bos(self, tokenizer: TokenizerLike) -> bool:
        """Whether each document begins with BOS."""
        return tokenizer.adds_bos if self.bos is None else self.bos

    def facts(self) -> dict[str, Any]:
        """The fields for the index, which holds bos and eos as ids, and a hash of the template."""
        facts = asdict(self)
        for name in ("bos", "eos", "chat_template"):
            del facts[name]
        if self.chat_template is not None:
            digest = hashlib.sha256(self.chat_template.encode()).hexdigest()
            facts["chat_template_sha256"] = digest
        return facts


def encode(chunk: Chunk, recipe: Recipe, tokenizer: TokenizerLike, shard: Path) -> int:
    """Write a chunk's tokens, document lengths and what was left out as one .npz file.

    Returns the number of tokens.
    """
    dtype = id_dtype(tokenizer.num_ids)
    ids = {split: io.BytesIO() for split in SPLITS}
    answers = {split: io.BytesIO() for split in SPLITS}
    lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
    left_out = {"empty": 0, "shorter": 0, "longer": 0}
    num_literal = 0
    counts: list[int] = []
    rejects: list[tuple[int, int, str]] = []
    for range_number, file_range in enumerate(chunk.ranges):
        number = -1
        documents = file_range.documents(recipe.reader)
        for number, text, reason, token_ids, is_answer in _encoded(documents, recipe, tokenizer):
            if reason:
                rejects.append((range_number, number, reason))
                continue
            if not text:
                left_out["empty"] += 1
                continue
            is_text = recipe.chat_template is None
            if is_text and not recipe.parse_special and tokenizer.special_literals(text):
                num_literal += 1
            document = np.array(token_ids, dtype)
            if len(document) < recipe.min_tokens:
                left_out["shorter"] += 1
            elif recipe.max_tokens is not None and len(document) > recipe.max_tokens:
                left_out["longer"] += 1
            else:
                split = split_of(text, recipe.held_out)
                ids[split].write(document.data)
                answers[split].write(is_answer.astype(np.uint8).data)
                lengths[split].append(len(document))
        counts.append(number + 1)
    facts = {**left_out, LITERAL: num_literal, "counts": counts, "rejects": rejects}
    arrays: dict[str, np.ndarray] = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    for split in SPLITS:
        arrays[split] = np.frombuffer(ids[split].getbuffer(), dtype)
        arrays[f"{split}_lengths"] = np.array(lengths[split], np.int64)
        if recipe.chat_template is not None:
            arrays[f"{split}_answers"] = np.frombuffer(answers[split].getbuffer(), np.uint8)
    with atomic_file(shard) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return sum(len(arrays[split]) for split in SPLITS)


class _Encoded(NamedTuple):
    """A document with its token ids; without them it is empty, or there is a reason."""

    number: int
    text: str
    reason: str
    ids: list[int]
    is_answer: np.ndarray = np.zeros(0, bool)


def _encoded(
    documents: Iterable[Document], recipe: Recipe, tokenizer: TokenizerLike
) -> Iterator[_Encoded]:
    """Every document in order."""
    if recipe.chat_template is not None:
        yield from _encoded_records(list(documents), recipe.chat_template, tokenizer)
        return
    bos = recipe.adds_bos(tokenizer)
    for number, text, reason, _ in documents:
        ids = []
        if text:
            ids = encode_document(
                tokenizer, text, bos=bos, eos=recipe.eos, parse_special=recipe.parse_special
            )
        yield _Encoded(number, text, reason, ids)


def _encoded_records(
    documents: list[Document], template: str, tokenizer: TokenizerLike
) -> Iterator[_Encoded]:
    """All records of a part of a file, as many of them are rendered together."""
    assert isinstance(tokenizer, Tokenizer), "a template is of a checkpoint's tokenizer"
    conversations = (messages_of(document.text) for document in documents if document.text)
    answered = encode_answers(Chat(tokenizer, template), conversations)
    for number, text, reason, _ in documents:
        if not text:
            yield _Encoded(number, text, reason, [])
            continue
        ids, is_answer, unusable = next(answered)
        yield _Encoded(number, text, unusable, ids, is_answer)
