"""Key-value recall: several pairs scattered in a long text, one of them asked for, the others distract."""

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

NAMES = string.ascii_letters


@dataclass(frozen=True)
class KeyValue(TrainingTask):
    """`num_pairs` lines `# q=482` in the haystack; the prompt ends with `# q=` for one of them."""

    supports_shared_context: ClassVar[bool] = True
    name: ClassVar[str] = "kv"
    num_pairs: int = 8
    digits: int = 3

    def _records(self, rng: np.random.Generator, tokenizer: Encoder, count: int) -> list[Record]:
        return draw_records(
            rng, tokenizer, count, names=NAMES, stem=lambda k: f"# {k}=", digits=self.digits
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
        """The asked pair at `depth`, the other pairs anywhere, in exactly `seq_len` tokens, answer included."""
        records = self._records(rng, tokenizer, self.num_pairs)
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
        """A pair at each depth and a question for each; further pairs, if `num_pairs` is more, anywhere."""
        records = self._records(rng, tokenizer, max(self.num_pairs, len(depths)))
        return records_exam(
            rng, tokenizer, seq_len, records, depths=depths, task=self.name, haystack=haystack
        )

    def training_row(
        self, rng: np.random.Generator, tokenizer: Encoder, length: int, haystack: Haystack
    ) -> tuple[np.ndarray, np.ndarray]:
        """Episodes of which half to all is pairs and questions; weights as in `records_row`."""
        records = self._records(rng, tokenizer, max_records(NAMES, self.digits))
        return records_row(
            rng, tokenizer, length, records, task=self.name, share=(0.5, 1), haystack=haystack
        )
