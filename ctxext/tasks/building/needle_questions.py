"""Questions about one or several needles of a long text; values may be words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from ctxext.tasks.base import Example, TaskContext, as_ids
from ctxext.tasks.building.needles import Needle
from ctxext.tasks.building.placement import (
    Frame,
    Insertion,
    Placement,
    lines_that_fit,
    place,
    place_between,
)
from ctxext.tasks.building.scores import Metric
from ctxext.tasks.building.value_lists import join_values, max_list_tokens, wrong_lists

LINES_WITHOUT_LENGTH = 8
"""Lines of a text made of needles where no length is given."""


class NeedleQuestion(NamedTuple):
    """The end of a prompt and the needles it asks for: key by key, as many values as a key has."""

    ids: list[int]
    needles: list[Needle]


@dataclass(frozen=True)
class AnswerFormat:
    """How an answer is scored, and the tokens kept free for it at least."""

    metric: Metric
    min_new_tokens: int


def ask_needles(
    context: TaskContext,
    seq_len: int | None,
    questions: Sequence[NeedleQuestion],
    distractors: Sequence[Needle],
    *,
    depths: Sequence[float | None],
    task: str,
    answer: AnswerFormat,
    line_source: Iterator[Needle] | None = None,
) -> list[Example]:
    """One example per question, all about one text.

    One needle of each question is at its depth; its other needles and `distractors` are anywhere.
    line_source: the text around them is these needles, as many as fit. Raises ValueError if the
    needles do not fit.
    """
    needles = [needle for question in questions for needle in question.needles]
    needles += distractors
    values = [needle.value_ids for needle in needles]
    max_new_tokens = [
        max(answer.min_new_tokens, max_list_tokens(context, values, len(question.needles)))
        for question in questions
    ]
    reserved = max(
        len(question.ids) + size for question, size in zip(questions, max_new_tokens, strict=True)
    )
    # The indices of each question's needles, shuffled; the first of them is the one at the depth.
    ends = np.cumsum([len(question.needles) for question in questions])
    groups = np.split(np.arange(ends[-1]), ends[:-1])
    indices = [context.rng.permutation(group).tolist() for group in groups]
    needle_depths: list[float | None] = [None] * len(needles)
    for (first, *_), depth in zip(indices, depths, strict=True):
        needle_depths[first] = context.draw_depth(depth)
    if line_source is None:
        spans = [needle.ids for needle in needles]
        insertions = list(map(Insertion, needle_depths, spans))
        placement = place(context, seq_len, insertions, Frame(reserved), task=task)
    else:
        spans = [needle.line for needle in needles]
        insertions = list(map(Insertion, needle_depths, spans))
        if seq_len is None:
            lines = list(islice(line_source, LINES_WITHOUT_LENGTH))
        else:
            used = len(context.bos) + sum(map(len, spans)) + reserved
            lines = lines_that_fit(line_source, seq_len - used, lambda needle: len(needle.line))
        placement = place_between(
            context,
            seq_len,
            insertions,
            [needle.line for needle in lines],
            task=task,
            reserved=reserved,
        )
        needles += lines
    sizes = [len(ids) for ids in spans]
    return [
        _example(context, question, placement, needles, sizes, own, answer.metric, most)
        for question, own, most in zip(questions, indices, max_new_tokens, strict=True)
    ]


def _example(
    context: TaskContext,
    question: NeedleQuestion,
    placement: Placement,
    needles: Sequence[Needle],
    sizes: Sequence[int],
    own: Sequence[int],
    metric: Metric,
    max_new_tokens: int,
) -> Example:
    """own: indices of the question's needles, the one at the depth first; sizes: their tokens."""
    keys = [needle.key for needle in question.needles]
    in_order = sorted(own, key=lambda i: (keys.index(needles[i].key), placement.starts[i]))
    gold = [needles[i] for i in in_order]
    wrong = [needle for i, needle in enumerate(needles) if i not in own]
    prompt = np.concatenate([placement.prompt, as_ids(question.ids)])
    spans = sorted([placement.starts[i], sizes[i]] for i in own)
    meta = {
        "needles": spans,
        "distance": len(prompt) - spans[0][0],
        "haystack": placement.excerpts,
    }
    if len(gold) == 1:
        meta |= {"name": gold[0].key, "value": gold[0].value}
    wrong_values = [needle.value_ids for needle in wrong]
    return Example(
        prompt,
        as_ids(join_values(context, [needle.value_ids for needle in gold])),
        placement.depths[own[0]],
        meta,
        max_new_tokens,
        metric=metric,
        references=tuple(needle.value for needle in gold),
        distractors=tuple(needle.value for needle in wrong),
        choices=wrong_lists(context, wrong_values, len(gold), max_new_tokens),
        stop_at_newline=True,
        num_shared_tokens=len(placement.prompt),
    )
