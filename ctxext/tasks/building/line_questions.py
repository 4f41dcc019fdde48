"""Questions about texts that are made of lines alone, such as edges, passages or examples."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.tasks.base import Example, TaskContext, as_ids
from ctxext.tasks.building.placement import Frame, Insertion, check_depth, place
from ctxext.tasks.building.scores import Metric


class LineQuestion(NamedTuple):
    """The end of a prompt, its answer, and the lines that decide it; the first is at the depth."""

    ids: Sequence[int]
    answer: Sequence[int]
    lines: Sequence[int]
    references: Sequence[str]
    distractors: Sequence[str] = ()
    choices: Sequence[Sequence[int]] = ()
    facts: Mapping[str, Any] = {}


class AskedLines(NamedTuple):
    """How questions about lines are asked.

    tail: ids between the lines and each question, such as worked examples; room: the most tokens of
    an answer.
    """

    task: str
    metric: Metric
    room: int
    tail: Sequence[int] = ()


def order_lines(
    context: TaskContext, count: int, depths: Mapping[int, float], *, task: str
) -> list[int]:
    """A random order of `count` lines, in which line i is at depths[i] of them, 0..1.

    Of equal depths the earlier line comes first. Raises ValueError for depths outside 0..1.
    """
    for depth in depths.values():
        check_depth(depth, task)
    order: list[int] = [i for i in context.rng.permutation(count).tolist() if i not in depths]
    for i, depth in sorted(depths.items(), key=lambda entry: (entry[1], entry[0])):
        order.insert(round(depth * (count - 1)), i)
    return order


def ask_lines(
    context: TaskContext,
    seq_len: int | None,
    lines: Sequence[Sequence[int]],
    questions: Sequence[LineQuestion],
    asked: AskedLines,
) -> list[Example]:
    """One example per question, all about the text of these lines in this order.

    Haystack text before all lines, less than a line where they were drawn to fit, fills the rest
    up. Depths are shares of the lines. Raises ValueError if the lines do not fit.
    """
    reserved = max(len(question.ids) for question in questions) + asked.room
    placement = place(
        context,
        seq_len,
        [Insertion(1.0, ids) for ids in lines],
        Frame(reserved, tail=asked.tail),
        task=asked.task,
        ordered=True,
    )
    examples = []
    for question in questions:
        prompt = np.concatenate([placement.prompt, as_ids(question.ids)])
        needles = sorted([placement.starts[i], len(lines[i])] for i in question.lines)
        # Where no line answers, all of them have to be read.
        distance = len(prompt) - (needles[0][0] if needles else len(context.bos))
        meta = {**question.facts, "needles": needles, "distance": distance, "haystack": []}
        examples.append(
            Example(
                prompt,
                as_ids(question.answer),
                question.lines[0] / max(1, len(lines) - 1) if question.lines else 0.0,
                meta,
                asked.room,
                metric=asked.metric,
                references=tuple(question.references),
                distractors=tuple(question.distractors),
                choices=tuple(map(as_ids, question.choices)),
                stop_at_newline=True,
                num_shared_tokens=len(placement.prompt),
            )
        )
    return examples
