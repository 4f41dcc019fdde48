"""Short rows packed into long ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxext.data.corpus import Row, Rows
from ctxext.data.sources.base import Source
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Short(Source):
    """Rows of `seq_len` tokens packed into longer ones: short data in a long fine-tune.

    Short-context data keeps the abilities of the base model (arXiv 2410.02660).
    """

    source: Source
    """The source of the short rows."""
    seq_len: int
    """Tokens of a short row."""

    def __post_init__(self) -> None:
        if self.seq_len < 2:
            raise ValueError(f"a short row needs at least 2 tokens, got {self.seq_len}")

    def open(self, tokenizer: TokenizerLike) -> "PackedRows":
        return PackedRows(self.source.open(tokenizer), self.seq_len)


class PackedRows(Rows):
    """Rows of `short` tokens one after another in each row, which do not see each other.

    The last of them may be cut off.
    """

    def __init__(self, rows: Rows, short: int) -> None:
        self.rows = rows
        self.short = short

    def row(self, rng: np.random.Generator, seq_len: int) -> Row:
        packed: list[Row] = []
        num_segments = 0
        for _ in range(-(-seq_len // self.short)):
            row = self.rows.row(rng, self.short)
            # Segments are counted through; padding stays segment 0.
            ids = np.where(row.segment_ids > 0, row.segment_ids + num_segments, 0)
            num_segments += int(row.segment_ids.max())
            packed.append(row._replace(segment_ids=ids.astype(np.int32)))
        return Row(*(np.concatenate(values)[:seq_len] for values in zip(*packed, strict=True)))

    def notes(self, seq_len: int) -> Iterator[str]:
        yield from self.rows.notes(self.short)

    def longest_text(self, seq_len: int) -> int:
        return self.rows.longest_text(min(self.short, seq_len))

    def provenance(self) -> dict[str, Any]:
        return {"kind": "packed", "seq_len": self.short, "rows": self.rows.provenance()}
