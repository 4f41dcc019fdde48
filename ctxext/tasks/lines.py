"""A text that is nothing but records, line after line, one of them asked for (the idea is LongEval's)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, Task, encode_piece
from ctxext.tasks.building.needles import Question, needles_exam
from ctxext.tasks.building.records import Record
from ctxext.tasks.building.vocabulary import distinct


@dataclass(frozen=True)
class Lines(Task):
    """As many lines `The drawer amber-falcon holds 4821377` as fit; the first number that is written counts."""

    supports_shared_context: ClassVar[bool] = True
    name: ClassVar[str] = "lines"
    room: int = 0

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """The asked line at `depth` of all lines in exactly `seq_len` tokens, room for the answer included."""
        return self._exam(rng, tokenizer, seq_len, [depth], haystack)[0]

    def exam(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depths: Sequence[float],
        haystack: Haystack,
    ) -> list[Example]:
        """A line at each depth and a question for each."""
        return self._exam(rng, tokenizer, seq_len, depths, haystack)

    def _exam(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        depths: Sequence[float | None],
        haystack: Haystack,
    ) -> list[Example]:
        records = self._records(rng, tokenizer)
        questions = [Question(record.question, [record]) for record in islice(records, len(depths))]
        return needles_exam(
            rng,
            tokenizer,
            seq_len,
            questions,
            (),
            filling=records,
            depths=depths,
            task=self.name,
            metric="first-number",
            room=self.room,
            haystack=haystack,
        )

    @staticmethod
    def _records(rng: np.random.Generator, tokenizer: Encoder) -> Iterator[Record]:
        newline, values = encode_piece(tokenizer, "\n"), distinct(rng, "number")
        for name, value in zip(distinct(rng, "words"), values, strict=False):
            stem = encode_piece(tokenizer, f"The drawer {name} holds")
            yield Record(name, value, newline, stem, encode_piece(tokenizer, f" {value}"))
