"""Several sources mixed row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxext.data.corpus import Row, Rows
from ctxext.data.sources.base import Source
from ctxext.tokenization.protocol import TokenizerLike


@dataclass(frozen=True)
class Mix(Source):
    """Sources mixed row by row: ((weight, source), ...); weights are relative."""

    parts: tuple[tuple[float, Source], ...]
    """(weight, source) pairs; weights are relative."""

    def __post_init__(self) -> None:
        if not self.parts or not all(weight > 0 for weight, _ in self.parts):
            raise ValueError(
                "a Mix needs at least one part, and every weight must be positive: "
                "((0.7, source), ...)"
            )

    def open(self, tokenizer: TokenizerLike) -> "MixedRows":
        return MixedRows([(weight, source.open(tokenizer)) for weight, source in self.parts])


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
