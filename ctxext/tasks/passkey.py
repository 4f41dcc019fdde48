"""Passkey retrieval: one five-digit key in a long text, asked for at its end (the idea is of arXiv 2305.16300)."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, TrainingTask
from ctxext.tasks.building.records import (
    Record,
    draw_records,
    max_records,
    records_exam,
    records_row,
)

NAMES = string.ascii_uppercase


@dataclass(frozen=True)
class Passkey(TrainingTask):
    """`# key K=48213` once in the haystack; the prompt ends with `# key K=`; training rows hold several keys."""

    supports_shared_context: ClassVar[bool] = True
    name: ClassVar[str] = "passkey"
    digits: int = 5

    def _records(self, rng: np.random.Generator, tokenizer: Encoder, count: int) -> list[Record]:
        return draw_records(
            rng, tokenizer, count, names=NAMES, stem=lambda k: f"# key {k}=", digits=self.digits
        )

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """One key at `depth` (0 first, 1 just before the question) in exactly `seq_len` tokens, answer included."""
        records = self._records(rng, tokenizer, 1)
        return records_exam(
            rng, tokenizer, seq_len, records, depths=[depth], task=self.name, haystack=haystack
        )[0]

    def exam(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depths: Sequence[float],
        haystack: Haystack,
    ) -> list[Example]:
        """A key at each depth, and a question for each."""
        records = self._records(rng, tokenizer, len(depths))
        return records_exam(
            rng, tokenizer, seq_len, records, depths=depths, task=self.name, haystack=haystack
        )

    def training_row(
        self, rng: np.random.Generator, tokenizer: Encoder, length: int, haystack: Haystack
    ) -> tuple[np.ndarray, np.ndarray]:
        """Episodes from one key in much text to keys and questions all over; weights as in `records_row`."""
        records = self._records(rng, tokenizer, max_records(NAMES, self.digits))
        return records_row(
            rng, tokenizer, length, records, task=self.name, share=(0, 1), haystack=haystack
        )
