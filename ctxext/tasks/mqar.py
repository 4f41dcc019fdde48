"""Multi-query associative recall: pairs of random tokens among random tokens (arXiv 2312.04927)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import (
    Example,
    SharedContextTask,
    SuiteLayout,
    TaskContext,
    TrainingTask,
    as_ids,
)
from ctxext.tasks.building.placement import Frame, Insertion, place
from ctxext.tasks.building.value_lists import MAX_SINGLE_CHOICES


@dataclass(frozen=True)
class Mqar(SharedContextTask, TrainingTask):
    """`num_pairs` pairs of a key and a value, each one token; the answer to a key is its value.

    Keys, values and the tokens around them are three disjoint sets drawn from the tokens of the
    haystack: none is a control token, and none was never seen.
    """

    name: ClassVar[str] = "mqar"
    suite_layout: ClassVar[SuiteLayout] = "shared-context"
    num_pairs: int = 8
    """Pairs in the text."""

    def shared_examples(
        self, context: TaskContext, seq_len: int | None, depths: Sequence[float | None]
    ) -> list[Example]:
        """A pair at each depth and a question for each; further pairs of `num_pairs` anywhere."""
        pairs, rest = self._draw_tokens(context, max(self.num_pairs, len(depths)))
        pair_depths: list[float | None] = [context.draw_depth(depth) for depth in depths]
        pair_depths += [None] * (len(pairs) - len(depths))
        placement = place(
            replace(context, haystack=[rest]),
            seq_len,
            list(map(Insertion, pair_depths, pairs.tolist())),
            Frame(reserved=2),
            task=self.name,
        )
        around = context.rng.choice(rest, len(placement.prompt))
        text = np.where(np.isin(placement.prompt, rest), around, placement.prompt)
        examples = []
        for i, (key, _) in enumerate(pairs[: len(depths)]):
            prompt = np.append(text, key)
            start = placement.starts[i]
            meta = {"needles": [[start, 2]], "distance": len(prompt) - start, "haystack": []}
            wrong = context.rng.permutation(np.delete(pairs[:, 1], i))[:MAX_SINGLE_CHOICES]
            examples.append(
                Example(
                    prompt,
                    pairs[i, 1:],
                    placement.depths[i],
                    meta,
                    1,
                    choices=tuple(wrong[:, None]),
                    num_shared_tokens=len(text),
                )
            )
        return examples

    def training_row(self, context: TaskContext, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Every pair twice at random places.

        Only second values have weight, scaled to the sum length - 1.
        """
        rng = context.rng
        head = context.bos
        count = min(self.num_pairs, (length - len(head)) // 4)
        if count < 1:
            raise ValueError(
                f"{self.name}: a training row of {length} tokens cannot hold a pair twice; "
                f"the shortest is {len(head) + 4} tokens"
            )
        pairs, rest = self._draw_tokens(context, count)
        around = rng.choice(rest, length - len(head) - 4 * count)
        order = rng.permutation(np.repeat(np.arange(count), 2))
        cuts = np.repeat(np.sort(rng.integers(len(around) + 1, size=2 * count)), 2)
        is_second = [order[i] in order[:i] for i in range(len(order))]
        weight_of_pairs = np.ravel([(False, second) for second in is_second])
        tokens = np.insert(around, cuts, pairs[order].ravel())
        weights = np.insert(np.zeros(len(around)), cuts, weight_of_pairs)
        row = np.concatenate([as_ids(head), tokens])
        scaled = np.append(np.zeros(len(head)), weights) * (length - 1) / count
        return row, scaled.astype(np.float32)

    def _draw_tokens(self, context: TaskContext, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs int32[count, 2] and the tokens around them."""
        passage, _ = context.draw_haystack(max(4096, 64 * count))
        known = context.rng.permutation(np.unique(passage))
        if len(known) <= 2 * count:
            raise ValueError(
                f"{self.name}: {count} pairs need more than {2 * count} different tokens, the "
                f"haystack has {len(known)} of {context.tokenizer.vocab_size}: ask for fewer pairs"
            )
        return known[: 2 * count].reshape(count, 2), known[2 * count :]
