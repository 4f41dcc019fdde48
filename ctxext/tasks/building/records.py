"""Records `name=digits` scattered in a haystack, and questions that repeat the stem and leave the digits to the reader.

The question of a record is its own beginning, so that a base model completes it without any instruction.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.tasks.base import (
    FILLER_WEIGHT,
    Encoder,
    Example,
    Haystack,
    beginning,
    draw_haystack,
    encode_piece,
)
from ctxext.tasks.building.placement import place


class Record(NamedTuple):
    """Token ids of `newline stem value newline`; the question is `newline stem`."""

    name: str
    digits: str
    newline: list[int]
    stem: list[int]
    value: list[int]

    @property
    def question(self) -> list[int]:
        return self.newline + self.stem

    @property
    def line(self) -> list[int]:
        return self.question + self.value

    @property
    def ids(self) -> list[int]:
        return self.line + self.newline


def max_records(names: Sequence[str], digits: int) -> int:
    """How many records with different names and different values there are."""
    return min(len(names), 9 * 10 ** (digits - 1))


def draw_records(
    rng: np.random.Generator,
    tokenizer: Encoder,
    count: int,
    *,
    names: Sequence[str],
    stem: Callable[[str], str],
    digits: int,
) -> list[Record]:
    """`count` records with different names and different values of `digits` digits, the first of them not zero."""
    most = max_records(names, digits)
    if not 1 <= count <= most:
        raise ValueError(
            f"{count} records do not fit {len(names)} names and {digits} digits: ask for 1 to {most}"
        )
    newline = encode_piece(tokenizer, "\n")
    values: dict[str, None] = {}
    while len(values) < count:
        values[str(rng.integers(10 ** (digits - 1), 10**digits))] = None
    chosen = [names[int(i)] for i in rng.permutation(len(names))[:count]]
    return [
        Record(
            name,
            value,
            newline,
            encode_piece(tokenizer, stem(name)),
            encode_piece(tokenizer, value),
        )
        for name, value in zip(chosen, values, strict=True)
    ]


def records_exam(
    rng: np.random.Generator,
    tokenizer: Encoder,
    seq_len: int | None,
    records: Sequence[Record],
    *,
    depths: Sequence[float | None],
    task: str,
    haystack: Haystack,
) -> list[Example]:
    """All records in `seq_len` tokens; each of `depths` is that of a record which is asked, the others are anywhere.

    seq_len None: without any haystack.
    """
    asked = records[: len(depths)]
    depths = [float(rng.random()) if depth is None else depth for depth in depths]
    pieces = [
        (depth, record.ids)
        for depth, record in zip([*depths, *[None] * len(records)], records, strict=False)
    ]
    room = max(len(record.question) + len(record.value) for record in asked)
    placed = place(
        rng, tokenizer, seq_len, pieces, task=task, tail=(), room=room, haystack=haystack
    )
    out = []
    for i, record in enumerate(asked):
        prompt = np.concatenate([placed.prompt, np.asarray(record.question, np.int32)])
        distances = [len(prompt) - start for start in placed.starts]
        meta = {
            "name": record.name,
            "value": record.digits,
            "needles": [[placed.starts[i], len(record.ids)]],
            "distance": distances[i],
            "distances": [distances[i], *distances[:i], *distances[i + 1 :]],
            "haystack": placed.haystack,
        }
        others = [other for other in records if other is not record]
        out.append(
            Example(
                prompt,
                np.asarray(record.value, np.int32),
                placed.depths[i],
                meta,
                decoys=tuple(other.digits for other in others),
                references=(record.digits,),
                choices=tuple(np.asarray(other.value, np.int32) for other in others),
                shared=len(placed.prompt),
            )
        )
    return out


def records_row(
    rng: np.random.Generator,
    tokenizer: Encoder,
    length: int,
    records: Sequence[Record],
    *,
    task: str,
    share: tuple[float, float],
    haystack: Haystack,
) -> tuple[np.ndarray, np.ndarray]:
    """Episodes one after another until the row is full: records, a question for each, and text around them.

    A third of the episodes take all that is left, so that the longest distances occur; the others are as often short
    as long, because a model learns to copy nearby before it learns to copy from far. `share`: bounds of the part of an
    episode that is records and questions. A name occurs in one episode and is asked once, so that no answer can be
    copied from an earlier answer.

    Weights: 0 on BOS, records and questions (names and values are chance); FILLER_WEIGHT on text for 1 on answers; then
    scaled to the sum length - 1, so that a row counts in a mixture as much as a row of text.
    """
    head = beginning(tokenizer)
    costs = [2 * len(record.ids) for record in records]
    if len(head) + costs[0] > length:
        raise ValueError(
            f"{task}: a training row of {length} tokens cannot hold a record and its question; "
            f"the shortest is {len(head) + costs[0]} tokens"
        )
    parts, weights, left, used = (
        [np.asarray(head, np.int32)],
        [np.zeros(len(head))],
        length - len(head),
        0,
    )
    while used < len(records) and left >= costs[used]:
        size = (
            left
            if rng.random() < 1 / 3
            else round(costs[used] * (left / costs[used]) ** rng.random())
        )
        budget = size * rng.uniform(*share)
        count = max(1, int(np.searchsorted(np.cumsum(costs[used:]), budget, side="right")))
        tokens, weight = _episode(rng, size, records[used : used + count], haystack)
        parts, weights, left, used = [*parts, tokens], [*weights, weight], left - size, used + count
    rest, _ = draw_haystack(rng, haystack, left)
    weight = np.concatenate([*weights, np.full(left, FILLER_WEIGHT)])
    return np.concatenate([*parts, rest]), (weight * (length - 1) / weight.sum()).astype(np.float32)


def _episode(
    rng: np.random.Generator, size: int, records: Sequence[Record], haystack: Haystack
) -> tuple[np.ndarray, np.ndarray]:
    """Half of the episodes ask everything at their end, as an exam does; the others mix records and questions."""
    count = len(records)
    filler, _ = draw_haystack(rng, haystack, size - 2 * sum(len(record.ids) for record in records))
    if rng.random() < 0.5:
        order = np.append(rng.permutation(count), rng.permutation(count))
        cuts = np.append(np.sort(rng.integers(len(filler) + 1, size=count)), [len(filler)] * count)
    else:
        order = rng.permutation(np.repeat(np.arange(count), 2))
        cuts = np.sort(rng.integers(len(filler) + 1, size=2 * count))
    parts: list[Any] = []
    weights, used, seen = [], 0, set()
    for i, cut in zip(order.tolist(), cuts.tolist(), strict=True):
        record = records[i]
        weight = np.zeros(len(record.ids))
        if i in seen:  # the second occurrence of a record is its question and answer
            weight[len(record.question) :][: len(record.value)] = 1
        seen.add(i)
        parts += [filler[used:cut], record.ids]
        weights += [np.full(cut - used, FILLER_WEIGHT), weight]
        used = cut
    parts.append(filler[used:])
    weights.append(np.full(len(filler) - used, FILLER_WEIGHT))
    return np.concatenate([np.asarray(part, np.int32) for part in parts]), np.concatenate(weights)
