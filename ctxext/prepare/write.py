"""Parts joined, in the order of the documents, into the files that training maps; every file is whole or absent."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctxext.data.prepared import OFFSETS, SPLITS, file_hash, offset_file, token_file
from ctxext.files import atomic_file, write_text
from ctxext.prepare.chunks import Unit

REJECTS = "rejects.jsonl"
LEFT_OUT = ("rejected", "empty", "shorter", "longer")


class Tally:
    """What the parts say of the documents that are left out, and the lines or rows that the rejected ones are in."""

    def __init__(self, units: Sequence[Unit], parts: Sequence[Path], sources: int) -> None:
        self.records = 0
        self.rejects: list[dict[str, Any]] = []
        self.left_out = [dict.fromkeys(LEFT_OUT, 0) for _ in range(sources)]
        before: dict[tuple[int, str], int] = {}
        for unit, path in zip(units, parts, strict=True):
            with np.load(path) as part:
                facts = json.loads(part["facts"].tobytes())
            starts = []
            for piece, count in zip(unit.pieces, facts["counts"], strict=True):
                starts.append(before.get((unit.source, piece.name), 0))
                before[unit.source, piece.name] = starts[-1] + count
                self.records += count
            for place, number, reason in facts["rejects"]:
                piece = unit.pieces[place]
                self.rejects.append(
                    {
                        "source": unit.source,
                        "file": piece.name,
                        **_place(piece.path, starts[place] + number),
                        "reason": reason,
                    }
                )
            mine = self.left_out[unit.source]
            mine["rejected"] += len(facts["rejects"])
            for name in LEFT_OUT[1:]:
                mine[name] += facts[name]

    def write(self, root: Path) -> None:
        """A line for each reject: source, file, line or row, reason."""
        write_text(root / REJECTS, "".join(json.dumps(row) + "\n" for row in self.rejects))


def _place(path: str, number: int) -> dict[str, int]:
    """Lines are counted from 1, rows of tables from 0; a text file is one document."""
    return {".jsonl": {"line": number + 1}, ".txt": {}}.get(Path(path).suffix, {"row": number})


def join(
    root: Path, dtype: np.dtype, units: Sequence[Unit], parts: Sequence[Path], sources: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write token and offset files of every split; returns what the index says of the splits, and of each source."""
    splits: dict[str, Any] = {}
    counts = [{split: {"documents": 0, "tokens": 0} for split in SPLITS} for _ in range(sources)]
    for split in SPLITS:
        documents, tokens = 0, 0
        with (
            atomic_file(token_file(root, split)) as ids,
            atomic_file(offset_file(root, split)) as offsets,
        ):
            with ids.open("wb") as to_ids, offsets.open("wb") as to_offsets:
                to_offsets.write(np.zeros(1, OFFSETS).tobytes())
                for unit, (part, lengths) in zip(units, _read(parts, split), strict=True):
                    to_ids.write(part.astype(dtype, copy=False).data)
                    to_offsets.write((tokens + np.cumsum(lengths)).astype(OFFSETS).data)
                    mine = counts[unit.source][split]
                    mine["documents"] += len(lengths)
                    mine["tokens"] += len(part)
                    documents, tokens = documents + len(lengths), tokens + len(part)
            splits[split] = {
                "documents": documents,
                "tokens": tokens,
                "tokens_sha256": file_hash(ids),
                "offsets_sha256": file_hash(offsets),
            }
    return splits, counts


def _read(parts: Sequence[Path], split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path in parts:
        with np.load(path) as part:
            yield part[split], part[f"{split}_lengths"]
