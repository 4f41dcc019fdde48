"""Needles in a haystack: codes with names in a long text (niah of RULER, arXiv 2404.06654)."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, get_args

from ctxext.tasks.base import Example, SharedContextTask, SuiteOptions, Task, TaskContext
from ctxext.tasks.building.needle_questions import AnswerFormat, NeedleQuestion, ask_needles
from ctxext.tasks.building.needles import Needle, make_needle
from ctxext.tasks.building.noise import noise, without_excerpts
from ctxext.tasks.building.vocabulary import KINDS, Kind, distinct

Hay = Literal["text", "noise", "needles"]
TOKENS_PER_NEEDLE = 40
"""Room that a text has for each needle that is asked for, where several questions share it."""
HAYS: tuple[Hay, ...] = get_args(Hay)


@dataclass(frozen=True)
class Niah(SharedContextTask):
    """`num_keys` keys with `num_values` codes each; the codes of `num_queries` keys are asked for.

    One of the needles asked for is at the depth, all others anywhere. The score is the share of the
    codes that are written.
    """

    name: ClassVar[str] = "niah"
    num_keys: int = 1
    """Keys in the text."""
    num_values: int = 1
    """Codes per key."""
    num_queries: int = 1
    """Keys that are asked for."""
    key: Kind = "words"
    """The kind of the keys."""
    value: Kind = "number"
    """The kind of the codes."""
    hay: Hay = "text"
    """The haystack: text, one passage of noise repeated, or as many other needles as fit."""
    max_new_tokens: int = 0

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
                f"niah: {self.num_queries} of {self.num_keys} keys with {self.num_values} values "
                "each cannot be asked for: 1 <= num_queries <= num_keys and num_values >= 1"
            )

    @classmethod
    def suite_names(cls) -> tuple[str, ...]:
        return ("niah", "niah-multikey", "niah-multivalue", "niah-multiquery")

    @classmethod
    def for_suite(cls, suite_name: str, options: SuiteOptions) -> tuple[Task, ...]:
        settings = {
            "niah": cls(),
            "niah-multikey": cls(num_keys=4),
            "niah-multivalue": cls(num_values=4),
            "niah-multiquery": cls(num_keys=4, num_queries=4),
        }
        return (settings[suite_name],)

    @property
    def tokens_per_question(self) -> int:
        return max(64, TOKENS_PER_NEEDLE * self.num_queries * self.num_values)

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """`num_queries` keys for each depth and a question for them; further keys anywhere."""
        needles = self._needles(context)
        per_question = self.num_queries * self.num_values
        questions = [self._question(context, list(islice(needles, per_question))) for _ in depths]
        num_distractors = max(0, self.num_keys - len(depths) * self.num_queries) * self.num_values
        distractors = list(islice(needles, num_distractors))
        if self.hay == "noise":
            context = dataclasses.replace(context, haystack=noise(context))
        examples = ask_needles(
            context,
            seq_len,
            questions,
            distractors,
            depths=depths,
            task=self.name,
            answer=AnswerFormat("all", self.max_new_tokens),
            line_source=needles if self.hay == "needles" else None,
        )
        return list(map(without_excerpts, examples)) if self.hay == "noise" else examples

    def _needles(self, context: TaskContext) -> Iterator[Needle]:
        """Endless needles, `num_values` in a row with the same key; all values differ."""
        keys = distinct(context.rng, self.key)
        values = keys if self.key == self.value else distinct(context.rng, self.value)
        article = "the" if self.num_values == 1 else "one"
        for key in keys:
            for value in islice(values, self.num_values):
                stem = f"Note: {article} code for {key} is"
                yield make_needle(context, key, value, stem=stem, before_value=" ")

    def _question(self, context: TaskContext, needles: list[Needle]) -> NeedleQuestion:
        if len(needles) == 1:
            return NeedleQuestion(needles[0].question, needles)
        keys = list(dict.fromkeys(needle.key for needle in needles))
        names = " and ".join(keys) + (", in this order," if len(keys) > 1 else "")
        ids = context.newline + context.encode(f"Note: all the codes for {names} are")
        return NeedleQuestion(ids, needles)
