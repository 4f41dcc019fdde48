"""Questions and training rows about one needle at a time, with exact answers."""

from collections.abc import Sequence

import numpy as np

from ctxext.tasks.base import FILLER_WEIGHT, Example, TaskContext, as_ids
from ctxext.tasks.building.needles import Needle
from ctxext.tasks.building.placement import Frame, Insertion, place
from ctxext.tasks.building.value_lists import MAX_SINGLE_CHOICES


def recall_examples(
    context: TaskContext,
    seq_len: int | None,
    needles: Sequence[Needle],
    *,
    depths: Sequence[float | None],
    task: str,
) -> list[Example]:
    """All needles in one text of `seq_len` tokens, and one question per depth.

    The first needles are at the depths and asked for, the rest anywhere. seq_len None: no haystack.
    """
    targets = needles[: len(depths)]
    others = needles[len(depths) :]
    insertions = [
        *(Insertion(context.draw_depth(d), n.ids) for d, n in zip(depths, targets, strict=True)),
        *(Insertion(None, needle.ids) for needle in others),
    ]
    reserved = max(len(needle.question) + len(needle.value_ids) for needle in targets)
    placement = place(context, seq_len, insertions, Frame(reserved), task=task)
    examples = []
    for i, needle in enumerate(targets):
        prompt = np.concatenate([placement.prompt, as_ids(needle.question)])
        distances = [len(prompt) - start for start in placement.starts]
        meta = {
            "name": needle.key,
            "value": needle.value,
            "needles": [[placement.starts[i], len(needle.ids)]],
            "distance": distances[i],
            "distances": [distances[i], *distances[:i], *distances[i + 1 :]],
            "haystack": placement.excerpts,
        }
        distractors = [*needles[i + 1 :], *needles[:i]]
        examples.append(
            Example(
                prompt,
                as_ids(needle.value_ids),
                placement.depths[i],
                meta,
                len(needle.value_ids),
                references=(needle.value,),
                distractors=tuple(other.value for other in distractors),
                choices=tuple(as_ids(n.value_ids) for n in distractors[:MAX_SINGLE_CHOICES]),
                num_shared_tokens=len(placement.prompt),
            )
        )
    return examples


def recall_row(
    context: TaskContext,
    length: int,
    needles: Sequence[Needle],
    *,
    task: str,
    needle_share: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """A training row: episodes of needles, a question for each, and text around them.

    A third of the episodes take all that is left, so that the longest distances occur; the lengths
    of the others are log-uniform, because a model learns to copy nearby before it learns to copy
    from far. needle_share: bounds of the share of an episode that is needles and questions. A key
    occurs in one episode and is asked for once, so that no answer can be copied from another
    answer.

    Weights: 0 on BOS, needles and questions (keys and values are chance), 1 on answers,
    FILLER_WEIGHT on text; then scaled to the sum length - 1, so that a row counts in a mixture as
    much as a row of text. Raises ValueError if not even one needle fits.
    """
    rng = context.rng
    costs = [len(needle.ids) + len(needle.answered) for needle in needles]
    least = len(context.bos) + costs[0]
    if least > length:
        raise ValueError(
            f"{task}: a training row of {length} tokens cannot hold a record and its question; "
            f"the shortest is {least} tokens"
        )
    parts = [as_ids(context.bos)]
    weights = [np.zeros(len(context.bos))]
    left = length - len(context.bos)
    used = 0
    while used < len(needles) and left >= costs[used]:
        if rng.random() < 1 / 3:
            size = left
        else:
            size = round(costs[used] * (left / costs[used]) ** rng.random())
        budget = size * rng.uniform(*needle_share)
        count = max(1, int(np.searchsorted(np.cumsum(costs[used:]), budget, side="right")))
        tokens, weight = _episode(context, size, needles[used : used + count])
        parts.append(tokens)
        weights.append(weight)
        left -= size
        used += count
    rest, _ = context.draw_haystack(left)
    weight = np.concatenate([*weights, np.full(left, FILLER_WEIGHT)])
    scaled = weight * (length - 1) / weight.sum()
    return np.concatenate([*parts, rest]), scaled.astype(np.float32)


def _episode(
    context: TaskContext, size: int, needles: Sequence[Needle]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and weights of one episode.

    Half of the episodes ask everything at their end, as an evaluation does; the others mix needles
    and questions.
    """
    rng = context.rng
    count = len(needles)
    cost = sum(len(needle.ids) + len(needle.answered) for needle in needles)
    filler, _ = context.draw_haystack(size - cost)
    if rng.random() < 0.5:
        order = np.append(rng.permutation(count), rng.permutation(count))
        cuts = np.append(np.sort(rng.integers(len(filler) + 1, size=count)), [len(filler)] * count)
    else:
        order = rng.permutation(np.repeat(np.arange(count), 2))
        cuts = np.sort(rng.integers(len(filler) + 1, size=2 * count))
    parts: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    used = 0
    seen: set[int] = set()
    for i, cut in zip(order.tolist(), cuts.tolist(), strict=True):
        needle = needles[i]
        ids = needle.answered if i in seen else needle.ids
        weight = np.zeros(len(ids))
        if i in seen:
            weight[len(needle.question) :][: len(needle.value_ids)] = 1
        seen.add(i)
        parts += [filler[used:cut], as_ids(ids)]
        weights += [np.full(cut - used, FILLER_WEIGHT), weight]
        used = cut
    parts.append(filler[used:])
    weights.append(np.full(len(filler) - used, FILLER_WEIGHT))
    return np.concatenate(parts), np.concatenate(weights)
