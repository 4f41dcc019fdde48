"""Needles in a haystack: codes with names somewhere in a long text (the family of RULER, arXiv 2404.06654)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, get_args

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, Task, encode_piece
from ctxext.tasks.building.needles import Question, needles_exam
from ctxext.tasks.building.noise import noise, without_pieces
from ctxext.tasks.building.records import Record
from ctxext.tasks.building.vocabulary import KINDS, Kind, distinct

Hay = Literal["text", "noise", "needles"]
HAYS: tuple[Hay, ...] = get_args(Hay)


@dataclass(frozen=True)
class Niah(Task):
    """`num_keys` names with `num_values` codes each; the codes of `num_queries` of them are asked for at the end.

    One of the asked needles stands at the depth, all others anywhere. The haystack is text, one passage of `noise`
    again and again, or `needles`: lines like those that are asked for, as many as fit. The score is the share of codes
    found; `room` tokens are kept for them at least.
    """

    supports_shared_context: ClassVar[bool] = True
    name: ClassVar[str] = "niah"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    key: Kind = "words"
    value: Kind = "number"
    hay: Hay = "text"
    room: int = 0

    def __post_init__(self) -> None:
        for field, value, known in (
            ("key", self.key, KINDS),
            ("value", self.value, KINDS),
            ("hay", self.hay, HAYS),
        ):
            if value not in known:
                raise ValueError(
                    f"niah: {field} {value!r} is not known; choose one of {', '.join(known)}"
                )
        if not 1 <= self.num_queries <= self.num_keys or self.num_values < 1:
            raise ValueError(
                f"niah: {self.num_queries} of {self.num_keys} keys with {self.num_values} values each "
                "cannot be asked for: 1 <= num_queries <= num_keys and num_values >= 1"
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
        """An asked needle at `depth`, all others anywhere, in exactly `seq_len` tokens, room for answers included."""
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
        """`num_queries` keys for each depth and a question for them; `num_keys` in all, or more if the questions do."""
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
        per_question = self.num_queries * self.num_values
        questions = [self._question(tokenizer, list(islice(records, per_question))) for _ in depths]
        further = max(0, self.num_keys - len(depths) * self.num_queries) * self.num_values
        others = list(islice(records, further))
        exam = needles_exam(
            rng,
            tokenizer,
            seq_len,
            questions,
            others,
            filling=records if self.hay == "needles" else None,
            depths=depths,
            task=self.name,
            metric="all",
            room=self.room,
            haystack=noise(tokenizer) if self.hay == "noise" else haystack,
        )
        return list(map(without_pieces, exam)) if self.hay == "noise" else exam

    def _records(self, rng: np.random.Generator, tokenizer: Encoder) -> Iterator[Record]:
        """Endless records, `num_values` after one another with the same key; no key and no value occurs twice."""
        newline, keys = encode_piece(tokenizer, "\n"), distinct(rng, self.key)
        values = keys if self.key == self.value else distinct(rng, self.value)
        for key in keys:
            stem = encode_piece(
                tokenizer, f"Note: {'the' if self.num_values == 1 else 'one'} code for {key} is"
            )
            for value in islice(values, self.num_values):
                yield Record(key, value, newline, stem, encode_piece(tokenizer, f" {value}"))

    def _question(self, tokenizer: Encoder, records: list[Record]) -> Question:
        if len(records) == 1:
            return Question(records[0].question, records)
        keys = list(dict.fromkeys(record.name for record in records))
        names = " and ".join(keys) + (", in this order," if len(keys) > 1 else "")
        text = f"Note: all the codes for {names} are"
        return Question(encode_piece(tokenizer, "\n") + encode_piece(tokenizer, text), records)
