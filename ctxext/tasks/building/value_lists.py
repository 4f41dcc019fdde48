"""Answers that are one or several values with commas between them, and wrong answers like them."""

from collections.abc import Sequence

import numpy as np

from ctxext.tasks.base import TaskContext, as_ids

MAX_SINGLE_CHOICES = 7
"""Wrong continuations of one value each. Each is read after the whole text: with more of them,
many questions about one text would cost more than the text."""
MAX_LIST_CHOICES = 3
"""Wrong continuations that are lists, each of which costs as much to score as the answer."""


def join_values(context: TaskContext, values: Sequence[Sequence[int]]) -> list[int]:
    """The ids of `values` with commas between them."""
    comma = context.encode(",")
    joined = [*values[0]]
    for value in values[1:]:
        joined += [*comma, *value]
    return joined


def max_list_tokens(context: TaskContext, values: Sequence[Sequence[int]], size: int) -> int:
    """A number of tokens that no list of `size` of the values exceeds."""
    return size * max(map(len, values)) + (size - 1) * len(context.encode(","))


def wrong_lists(
    context: TaskContext, values: Sequence[Sequence[int]], size: int, max_tokens: int
) -> tuple[np.ndarray, ...]:
    """Disjoint random lists of `size` wrong `values`, each of at max_lists `max_tokens`."""
    order = context.rng.permutation(len(values))
    groups = [order[i : i + size] for i in range(0, len(values) - size + 1, size)]
    max_lists = MAX_SINGLE_CHOICES if size == 1 else MAX_LIST_CHOICES
    lists = [join_values(context, [values[i] for i in group]) for group in groups[:max_lists]]
    return tuple(as_ids(ids) for ids in lists if len(ids) <= max_tokens)
