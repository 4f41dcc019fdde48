"""Copying in its purest form: a string of random tokens is said twice. It forms the heads that retrieval needs.

Every token of the second saying is a question, so a model learns it long before it learns to copy digits, and then
copies those too (induction heads, arXiv 2209.11895).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, TrainingTask, beginning, draw_haystack


@dataclass(frozen=True)
class Repeat(TrainingTask):
    """`num_cue` + `num_answer` random tokens once in the haystack; the prompt ends with the first `num_cue` of them."""

    name: ClassVar[str] = "repeat"
    num_cue: int = 4
    num_answer: int = 4

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """The string at `depth` (0 first, 1 just before the cue) in exactly `seq_len` tokens, answer included."""
        head, size = beginning(tokenizer), self.num_cue + self.num_answer
        needed = len(head) + 2 * size
        seq_len = needed if seq_len is None else seq_len
        if needed > seq_len:
            raise ValueError(
                f"{self.name}: a prompt of {seq_len} tokens cannot hold the string and its cue; "
                f"the shortest is {needed} tokens"
            )
        depth = float(rng.random()) if depth is None else depth
        if not 0 <= depth <= 1:
            raise ValueError(f"{self.name}: depth {depth} is outside 0..1")
        string = _random_tokens(rng, haystack, size)
        if len(string) < size:
            raise ValueError(
                f"{self.name}: the haystack has fewer than {size} different tokens: give it more text"
            )
        filler, pieces = draw_haystack(rng, haystack, seq_len - needed)
        cut = round(depth * len(filler))
        parts = [
            np.asarray(head, np.int32),
            filler[:cut],
            string,
            filler[cut:],
            string[: self.num_cue],
        ]
        prompt, answer = np.concatenate(parts), string[self.num_cue :]
        needle = len(head) + cut
        distance = len(prompt) - needle
        meta = {"needles": [[needle, size]], "distance": distance, "haystack": pieces}
        return Example(prompt, answer, cut / len(filler) if len(filler) else 0.0, meta)

    def training_row(
        self, rng: np.random.Generator, tokenizer: Encoder, length: int, haystack: Haystack
    ) -> tuple[np.ndarray, np.ndarray]:
        """Strings, each said twice, until the row is full.

        Weights: 0 on BOS, a first saying and the first token of a second one (all chance), 1 on the rest of it; then
        scaled to the sum length - 1, so that a row counts in a mixture as much as a row of text.
        """
        parts, weights = (
            [np.asarray(beginning(tokenizer), np.int32)],
            [np.zeros(len(beginning(tokenizer)))],
        )
        left = length - len(parts[0])
        if left < 4:
            raise ValueError(
                f"{self.name}: a training row of {length} tokens is too short; "
                f"the shortest is {length - left + 4} tokens"
            )
        while left:
            string = _random_tokens(rng, haystack, int(rng.integers(2, max(3, left // 2 + 1))))
            weight = np.ones(2 * len(string))
            weight[: len(string) + 1] = 0
            parts.append(np.tile(string, 2)[:left])
            weights.append(weight[:left])
            left -= len(parts[-1])
        weight = np.concatenate(weights)
        return np.concatenate(parts), (weight * (length - 1) / weight.sum()).astype(np.float32)


def _random_tokens(rng: np.random.Generator, haystack: Haystack, count: int) -> np.ndarray:
    """Up to `count` different tokens of a passage of the haystack, shuffled, so that none foretells the next."""
    passage, _ = draw_haystack(rng, haystack, max(64, 8 * count))
    return rng.permutation(np.unique(passage))[:count]
