"""The work of one worker: a chunk of documents becomes a shard, without importing jax."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.data.corpus import encode_document, id_dtype
from ctxext.data.held_out import HELD_OUT, split_of
from ctxext.data.token_files import SPLITS
from ctxext.files import atomic_file
from ctxext.prepare.chunks import Chunk
from ctxext.tokenization.protocol import TokenizerLike

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
    """

    field: str = "text"
    bos: bool | None = None
    eos: bool = True
    min_tokens: int = 0
    max_tokens: int | None = None
    held_out: float = HELD_OUT
    parse_special: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held-out is a share from 0 to below 1, got {self.held_out}")
        if self.max_tokens is not None and self.max_tokens < max(self.min_tokens, 1):
            raise ValueError(
                f"--max-tokens {self.max_tokens} leaves nothing above --min-tokens "
                f"{self.min_tokens}"
            )

    def adds_bos(self, tokenizer: TokenizerLike) -> bool:
        """Whether each document begins with BOS."""
        return tokenizer.adds_bos if self.bos is None else self.bos

    def facts(self) -> dict[str, Any]:
        """The fields for the index, which holds bos and eos as ids instead."""
        return {name: value for name, value in asdict(self).items() if name not in ("bos", "eos")}


def encode(chunk: Chunk, recipe: Recipe, tokenizer: TokenizerLike, shard: Path) -> int:
    """Write a chunk's tokens, document lengths and what was left out as one .npz file.

    Returns the number of tokens.
    """
    bos = recipe.adds_bos(tokenizer)
    dtype = id_dtype(tokenizer.num_ids)
    ids = {split: io.BytesIO() for split in SPLITS}
    lengths: dict[str, list[int]] = {split: [] for split in SPLITS}
    left_out = {"empty": 0, "shorter": 0, "longer": 0}
    num_literal = 0
    counts: list[int] = []
    rejects: list[tuple[int, int, str]] = []
    for range_number, file_range in enumerate(chunk.ranges):
        number = -1
        for number, text, reason, _ in file_range.documents(recipe.field):
            if reason:
                rejects.append((range_number, number, reason))
                continue
            if not text:
                left_out["empty"] += 1
                continue
            if not recipe.parse_special and tokenizer.special_literals(text):
                num_literal += 1
            token_ids = encode_document(
                tokenizer, text, bos=bos, eos=recipe.eos, parse_special=recipe.parse_special
            )
            document = np.array(token_ids, dtype)
            if len(document) < recipe.min_tokens:
                left_out["shorter"] += 1
            elif recipe.max_tokens is not None and len(document) > recipe.max_tokens:
                left_out["longer"] += 1
            else:
                split = split_of(text, recipe.held_out)
                ids[split].write(document.data)
                lengths[split].append(len(document))
        counts.append(number + 1)
    facts = {**left_out, LITERAL: num_literal, "counts": counts, "rejects": rejects}
    arrays: dict[str, np.ndarray] = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    for split in SPLITS:
        arrays[split] = np.frombuffer(ids[split].getbuffer(), dtype)
        arrays[f"{split}_lengths"] = np.array(lengths[split], np.int64)
    with atomic_file(shard) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return sum(len(arrays[split]) for split in SPLITS)
