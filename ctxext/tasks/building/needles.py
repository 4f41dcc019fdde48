"""Questions about records in a long text, one or several records each, with answers in words as good as digits."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, beginning, encode_piece
from ctxext.tasks.building.placement import Placed, place, place_between
from ctxext.tasks.building.records import Record
from ctxext.tasks.building.scores import Metric

MOST_CHOICES = 15
"""Wrong continuations that are one value each."""
MOST_LISTS = 3
"""Wrong continuations that are lists, of which each costs as much as the answer."""
BARE = 8
"""Lines of a text that is made of lines where no length is given."""


class Question(NamedTuple):
    """What the prompt ends with, and the records it asks for: name by name, those of one name as the text has them."""

    ids: list[int]
    records: list[Record]


def listed(tokenizer: Encoder, values: Sequence[Sequence[int]]) -> list[int]:
    """Values with commas between them."""
    comma = encode_piece(tokenizer, ",")
    return [*values[0], *(i for value in values[1:] for i in (*comma, *value))]


def longest_list(tokenizer: Encoder, values: Sequence[Sequence[int]], size: int) -> int:
    """Tokens that no list of `size` of the values exceeds."""
    return size * max(map(len, values)) + (size - 1) * len(encode_piece(tokenizer, ","))


def wrong_lists(
    rng: np.random.Generator,
    tokenizer: Encoder,
    values: Sequence[Sequence[int]],
    size: int,
    room: int,
) -> tuple[np.ndarray, ...]:
    """Wrong continuations: lists of `size` of the wrong `values`, none in two of them, not longer than `room`."""
    order = rng.permutation(len(values))
    picks = [order[i : i + size] for i in range(0, len(values) - size + 1, size)]
    lists = [
        listed(tokenizer, [values[i] for i in p])
        for p in picks[: MOST_CHOICES if size == 1 else MOST_LISTS]
    ]
    return tuple(np.asarray(ids, np.int32) for ids in lists if len(ids) <= room)


def needles_exam(
    rng: np.random.Generator,
    tokenizer: Encoder,
    seq_len: int | None,
    questions: Sequence[Question],
    others: Sequence[Record],
    *,
    filling: Iterator[Record] | None = None,
    depths: Sequence[float | None],
    task: str,
    metric: Metric,
    room: int,
    haystack: Haystack,
) -> list[Example]:
    """Questions about one text: one of a question's records stands at its depth, the rest and `others` anywhere.

    `filling`: the haystack is these records, as many as fit. At least `room` tokens are kept for each answer. Raises
    ValueError if the asked records and `others` cannot fit.
    """
    records = [*(record for question in questions for record in question.records), *others]
    values = [record.value for record in records]
    rooms = [
        max(room, longest_list(tokenizer, values, len(question.records))) for question in questions
    ]
    tail = max(len(question.ids) + size for question, size in zip(questions, rooms, strict=True))
    ends = np.cumsum([len(question.records) for question in questions])
    groups = np.split(np.arange(ends[-1]), ends[:-1])
    asked = [
        rng.permutation(group).tolist() for group in groups
    ]  # the first of each stands at the depth
    wanted: list[float | None] = [None] * len(records)
    for (first, *_), depth in zip(asked, depths, strict=True):
        wanted[first] = float(rng.random()) if depth is None else depth
    if filling is None:
        spans = [record.ids for record in records]
        placed = place(
            rng,
            tokenizer,
            seq_len,
            [*zip(wanted, spans, strict=True)],
            task=task,
            tail=(),
            room=tail,
            haystack=haystack,
        )
    else:
        spans = [record.line for record in records]
        used = len(beginning(tokenizer)) + sum(map(len, spans)) + tail
        lines = (
            list(islice(filling, BARE))
            if seq_len is None
            else _as_many_as_fit(filling, seq_len - used)
        )
        placed = place_between(
            rng,
            tokenizer,
            seq_len,
            [*zip(wanted, spans, strict=True)],
            [record.line for record in lines],
            task=task,
            room=tail,
            haystack=haystack,
        )
        records += lines
    sizes = [len(ids) for ids in spans]
    return [
        _example(rng, tokenizer, question, placed, records, sizes, group, metric=metric, room=size)
        for question, group, size in zip(questions, asked, rooms, strict=True)
    ]


def _example(
    rng: np.random.Generator,
    tokenizer: Encoder,
    question: Question,
    placed: Placed,
    records: Sequence[Record],
    sizes: Sequence[int],
    asked: Sequence[int],
    *,
    metric: Metric,
    room: int,
) -> Example:
    """`asked`: which of `records` are in question, at `placed.starts`, of `sizes` tokens; the first has the depth."""
    names = [record.name for record in question.records]
    gold = [
        records[i]
        for i in sorted(asked, key=lambda i: (names.index(records[i].name), placed.starts[i]))
    ]
    wrong = [record for i, record in enumerate(records) if i not in asked]
    prompt = np.concatenate([placed.prompt, np.asarray(question.ids, np.int32)])
    spans = sorted([placed.starts[i], sizes[i]] for i in asked)
    meta = {"needles": spans, "distance": len(prompt) - spans[0][0], "haystack": placed.haystack}
    if len(gold) == 1:
        meta |= {"name": gold[0].name, "value": gold[0].digits}
    return Example(
        prompt,
        np.asarray(listed(tokenizer, [record.value for record in gold]), np.int32),
        placed.depths[asked[0]],
        meta,
        metric=metric,
        references=tuple(record.digits for record in gold),
        decoys=tuple(record.digits for record in wrong),
        choices=wrong_lists(rng, tokenizer, [record.value for record in wrong], len(gold), room),
        room=room,
        line=True,
        shared=len(placed.prompt),
    )


def _as_many_as_fit(records: Iterator[Record], budget: int) -> list[Record]:
    taken: list[Record] = []
    for record in records:
        budget -= len(record.line)
        if budget < 0:
            break
        taken.append(record)
    return taken
