"""A haystack that repeats the same few sentences: nothing in it is ever new."""

import numpy as np

from ctxext.tasks.base import Example, TaskContext, as_ids

SENTENCES = (
    " Rain fell on the hills all day.",
    " The train was late again.",
    " Nobody minded the wait.",
    " The tea stayed warm until the evening.",
)


def noise(context: TaskContext) -> list[np.ndarray]:
    """One long document."""
    return [np.tile(as_ids(context.encode("".join(SENTENCES))), 1000)]


def without_excerpts(example: Example) -> Example:
    """The same question without the excerpts of its haystack, for one that was noise."""
    return example._replace(meta={**example.meta, "haystack": []})
