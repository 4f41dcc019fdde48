"""Wrong answers with the end of their prompts, for people to look at."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from ctxext.evals.record import AnswerRecord, EvalRecord
from ctxext.evals.retrieval import Retrieval

MOST = 20
"""Wrong answers of a task and length that are shown."""
PROMPT_TOKENS = 48
"""Tokens of the end of a prompt that are shown."""


class WrongAnswer(NamedTuple):
    """A wrong answer, as one row of the table."""

    task: str
    seq_len: int
    depth: float | None
    prompt_end: str
    expected: str
    got: str
    mistake: str
    """The kind of mistake, see `tasks.building.scores.failure`."""


def wrong_answers(
    evaluation: Retrieval, tokenizer: Any, records: Sequence[EvalRecord]
) -> list[WrongAnswer]:
    """The wrong answers among the records of a retrieval, up to MOST of each length, in order."""
    counts: Counter[int] = Counter()
    wrong: dict[str, AnswerRecord] = {}
    for record in records:
        if isinstance(record, AnswerRecord) and not record.scores.correct:
            counts[record.seq_len] += 1
            if counts[record.seq_len] <= MOST:
                wrong[record.item] = record
    examples = evaluation.examples_of(tokenizer, wrong)
    rows = []
    for item, record in wrong.items():
        example = examples[item]
        expected = example.references or (tokenizer.decode(example.answer.tolist()),)
        rows.append(
            WrongAnswer(
                task=evaluation.full_title,
                seq_len=record.seq_len,
                depth=record.question.depth,
                prompt_end=tokenizer.decode(example.prompt[-PROMPT_TOKENS:].tolist()),
                expected=" | ".join(text.strip() for text in expected),
                got=record.scores.text,
                mistake=record.scores.failure or "",
            )
        )
    return rows
