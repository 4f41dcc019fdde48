"""Shards joined, in the order of the documents, into the files that training maps into memory.

Every file is whole or absent.
"""

import contextlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.data.documents import location
from ctxext.data.token_files import (
    OFFSETS,
    SPLITS,
    answer_file,
    file_hash,
    offset_file,
    token_file,
)
from ctxext.files import atomic_file, write_text
from ctxext.prepare.chunks import Chunk
from ctxext.prepare.encode import LITERAL

REJECTS = "rejects.jsonl"
LEFT_OUT = ("rejected", "empty", "shorter", "longer")


class Tally:
    """The documents that were left out, per source and reason, and where the rejected ones are.

    num_read: lines, rows, entries and plain texts in all. num_literal: documents of each source
    that spell special tokens as text.
    """

    def __init__(self, chunks: Sequence[Chunk], shards: Sequence[Path], num_sources: int) -> None:
        self.num_read = 0
        self.rejects: list[dict[str, Any]] = []
        self.left_out = [dict.fromkeys(LEFT_OUT, 0) for _ in range(num_sources)]
        self.num_literal = [0] * num_sources
        self._num_before: dict[tuple[int, str], int] = {}
        for chunk, path in zip(chunks, shards, strict=True):
            with open_shard(path) as shard:
                self._add(chunk, json.loads(shard["facts"].tobytes()))

    def _add(self, chunk: Chunk, facts: dict[str, Any]) -> None:
        # The lines or rows of each file that come before each range.
        starts = []
        for file_range, count in zip(chunk.ranges, facts["counts"], strict=True):
            file = (chunk.source, file_range.name)
            starts.append(self._num_before.get(file, 0))
            self._num_before[file] = starts[-1] + count
            self.num_read += count
        for range_number, number, reason in facts["rejects"]:
            file_range = chunk.ranges[range_number]
            self.rejects.append(
                {
                    "source": chunk.source,
                    "file": file_range.name,
                    **location(Path(file_range.path), starts[range_number] + number),
                    "reason": reason,
                }
            )
        left_out = self.left_out[chunk.source]
        left_out["rejected"] += len(facts["rejects"])
        for name in LEFT_OUT[1:]:
            left_out[name] += facts[name]
        self.num_literal[chunk.source] += facts[LITERAL]

    def write(self, root: Path) -> None:
        """A line for each reject: source, file, line, row or entry, reason."""
        write_text(root / REJECTS, "".join(json.dumps(reject) + "\n" for reject in self.rejects))


def join(
    root: Path,
    dtype: np.dtype,
    chunks: Sequence[Chunk],
    shards: Sequence[Path],
    num_sources: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the token and offset files of every split.

    Returns the index's entries for the splits, and the counts of each source.
    """
    splits: dict[str, Any] = {}
    counts = [
        {split: {"documents": 0, "tokens": 0} for split in SPLITS} for _ in range(num_sources)
    ]
    for split in SPLITS:
        num_documents = 0
        num_tokens = 0
        with (
            atomic_file(token_file(root, split)) as token_path,
            atomic_file(offset_file(root, split)) as offset_path,
        ):
            with token_path.open("wb") as tokens, offset_path.open("wb") as offsets:
                offsets.write(np.zeros(1, OFFSETS).tobytes())
                for chunk, (ids, lengths) in zip(chunks, _read(shards, split, dtype), strict=True):
                    tokens.write(ids.astype(dtype, copy=False).data)
                    offsets.write((num_tokens + np.cumsum(lengths)).astype(OFFSETS).data)
                    count = counts[chunk.source][split]
                    count["documents"] += len(lengths)
                    count["tokens"] += len(ids)
                    num_documents += len(lengths)
                    num_tokens += len(ids)
            splits[split] = {
                "documents": num_documents,
                "tokens": num_tokens,
                "tokens_sha256": file_hash(token_path),
                "offsets_sha256": file_hash(offset_path),
            }
    return splits, counts


def join_answers(root: Path, shards: Sequence[Path], split: str, num_tokens: int) -> dict[str, Any]:
    """Write the file of answers of a split; returns what the index says about it."""
    num_read = 0
    num_answers = 0
    with atomic_file(answer_file(root, split)) as path:
        with path.open("wb") as file:
            for shard_path in shards:
                with open_shard(shard_path) as shard:
                    is_answer = shard[f"{split}_answers"]
                if is_answer.dtype != np.uint8 or is_answer.max(initial=0) > 1:
                    raise _corrupt(shard_path, "other numbers than its index says")
                file.write(is_answer.data)
                num_read += len(is_answer)
                num_answers += int(is_answer.sum())
        if num_read != num_tokens:
            raise _corrupt(root, "its shards do not mark every token")
        return {"answer_tokens": num_answers, "answers_sha256": file_hash(path)}


def _read(
    shards: Sequence[Path], split: str, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The ids and document lengths of every shard."""
    for path in shards:
        with open_shard(path) as shard:
            ids = shard[split]
            lengths = shard[f"{split}_lengths"]
        is_right = ids.dtype == dtype and lengths.dtype == np.int64 and ids.ndim == 1
        if not is_right or (lengths < 0).any() or sum(lengths.tolist()) != len(ids):
            raise _corrupt(path, "other numbers than its index says")
        yield ids, lengths


@contextlib.contextmanager
def open_shard(path: Path) -> Iterator[Any]:
    """The arrays of a shard by name. Raises ValueError if it is not what `encode` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError("it is compressed")
        with np.load(path) as shard:  # never unpickles
            yield shard
    except (KeyError, EOFError, MemoryError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _corrupt(path, str(error).strip("'")) from None


def _corrupt(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is corrupt ({reason:.80}): remove it and run the same command again")
