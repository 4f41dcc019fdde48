"""Copying in its purest form: a string of random tokens occurs twice.

It forms the heads that retrieval needs. Every token of the second occurrence is a question, so a
model learns it long before it learns to copy digits, and then copies those too (induction heads,
arXiv 2209.11895).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Example, TaskContext, TrainingTask, as_ids
from ctxext.tasks.building.placement import check_depth


@dataclass(frozen=True)
class Repeat(TrainingTask):
    """`num_cue` + `num_answer` random tokens in the haystack; the prompt ends with the cue."""

    name: ClassVar[str] = "repeat"
    num_cue: int = 4
    """Random tokens that the prompt ends with."""
    num_answer: int = 4
    """Random tokens that follow them in the text."""

    @classmethod
    def suite_names(cls) -> tuple[str, ...]:
        """None: it is trained only."""
        return ()

    def example(
        self, context: TaskContext, seq_len: int | None, depth: float | None = None
    ) -> Example:
        """The string at `depth` (0 first, 1 just before the cue), in exactly `seq_len` tokens."""
        head = context.bos
        size = self.num_cue + self.num_answer
        needed = len(head) + 2 * size
        seq_len = needed if seq_len is None else seq_len
        if needed > seq_len:
            raise ValueError(
                f"{self.name}: a prompt of {seq_len} tokens cannot hold the string and its cue; "
                f"the shortest is {needed} tokens"
            )
        depth = context.draw_depth(depth)
        check_depth(depth, self.name)
        string = _random_tokens(context, size)
        if len(string) < size:
            raise ValueError(
                f"{self.name}: the haystack has fewer than {size} different tokens: "
                "give it more text"
            )
        filler, excerpts = context.draw_haystack(seq_len - needed)
        cut = round(depth * len(filler))
        cue = string[: self.num_cue]
        prompt = np.concatenate([as_ids(head), filler[:cut], string, filler[cut:], cue])
        start = len(head) + cut
        meta = {
            "needles": [[start, size]],
            "distance": len(prompt) - start,
            "haystack": excerpts,
        }
        achieved = cut / len(filler) if len(filler) else 0.0
        return Example(prompt, string[self.num_cue :], achieved, meta, self.num_answer)

    def training_row(self, context: TaskContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Strings, each twice, until the row is full.

        Weights: 0 on BOS, a first occurrence and the first token of a second one (all chance), 1 on
        the rest of it; then scaled to the sum length - 1, so that a row counts in a mixture as much
        as a row of text.
        """
        parts = [as_ids(context.bos)]
        weights = [np.zeros(len(context.bos))]
        left = length - len(context.bos)
        if left < 4:
            raise ValueError(
                f"{self.name}: a training row of {length} tokens is too short; "
                f"the shortest is {length - left + 4} tokens"
            )
        while left:
            size = int(context.rng.integers(2, max(3, left // 2 + 1)))
            string = _random_tokens(context, size)
            weight = np.ones(2 * len(string))
            weight[: len(string) + 1] = 0
            parts.append(np.tile(string, 2)[:left])
            weights.append(weight[:left])
            left -= len(parts[-1])
        weight = np.concatenate(weights)
        scaled = weight * (length - 1) / weight.sum()
        return np.concatenate(parts), scaled.astype(np.float32)


def _random_tokens(context: TaskContext, count: int) -> np.ndarray:
    """Up to `count` different tokens of the haystack, shuffled, so that none predicts the next."""
    passage, _ = context.draw_haystack(max(64, 8 * count))
    return context.rng.permutation(np.unique(passage))[:count]
