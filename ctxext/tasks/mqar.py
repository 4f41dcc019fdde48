"""Multi-query associative recall: pairs of random tokens among random tokens, no language at all (arXiv 2312.04927)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, TrainingTask, beginning, draw_haystack
from ctxext.tasks.building.needles import MOST_CHOICES
from ctxext.tasks.building.placement import place


@dataclass(frozen=True)
class Mqar(TrainingTask):
    """`num_pairs` pairs of a key and a value, each one token; the prompt ends with a key, the answer is its value.

    Keys, values and the tokens around them are three sets without a token in common, drawn from those of the haystack:
    none is a control token, and none was never seen.
    """

    supports_shared_context: ClassVar[bool] = True
    name: ClassVar[str] = "mqar"
    num_pairs: int = 8

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """The asked pair at `depth`, the other pairs anywhere, in exactly `seq_len` tokens, answer included."""
        return self._exam(rng, tokenizer, seq_len, [depth], haystack)[0]

    def exam(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depths: Sequence[float],
        haystack: Haystack,
    ) -> list[Example]:
        """A pair at each depth and a question for each; further pairs, if `num_pairs` is more, anywhere."""
        return self._exam(rng, tokenizer, seq_len, depths, haystack)

    def _exam(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        depths: Sequence[float | None],
        haystack: Haystack,
    ) -> list[Example]:
        pairs, rest = self._tokens(rng, tokenizer, max(self.num_pairs, len(depths)), haystack)
        wanted = [float(rng.random()) if depth is None else depth for depth in depths]
        pieces = [
            *zip([*wanted, *[None] * (len(pairs) - len(wanted))], pairs.tolist(), strict=True)
        ]
        placed = place(
            rng, tokenizer, seq_len, pieces, task=self.name, tail=(), room=2, haystack=[rest]
        )
        around = rng.choice(rest, len(placed.prompt))
        text = np.where(np.isin(placed.prompt, rest), around, placed.prompt)
        out = []
        for i, (key, _) in enumerate(pairs[: len(depths)]):
            prompt = np.append(text, key)
            meta = {
                "needles": [[placed.starts[i], 2]],
                "distance": len(prompt) - placed.starts[i],
                "haystack": [],
            }
            others = rng.permutation(np.delete(pairs[:, 1], i))[:MOST_CHOICES]
            out.append(
                Example(
                    prompt,
                    pairs[i, 1:],
                    placed.depths[i],
                    meta,
                    choices=tuple(others[:, None]),
                    shared=len(text),
                )
            )
        return out

    def training_row(
        self, rng: np.random.Generator, tokenizer: Encoder, length: int, haystack: Haystack
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every pair twice at random places; weight on the second value alone, scaled to the sum length - 1."""
        head = beginning(tokenizer)
        count = min(self.num_pairs, (length - len(head)) // 4)
        if count < 1:
            raise ValueError(
                f"{self.name}: a training row of {length} tokens cannot hold a pair twice; "
                f"the shortest is {len(head) + 4} tokens"
            )
        pairs, rest = self._tokens(rng, tokenizer, count, haystack)
        around = rng.choice(rest, length - len(head) - 4 * count)
        order = rng.permutation(np.repeat(np.arange(count), 2))
        cuts = np.repeat(np.sort(rng.integers(len(around) + 1, size=2 * count)), 2)
        seen_before = [order[i] in order[:i] for i in range(len(order))]
        asked = np.ravel([(False, seen) for seen in seen_before])
        tokens = np.insert(around, cuts, pairs[order].ravel())
        weights = np.insert(np.zeros(len(around)), cuts, asked)
        row = np.concatenate([np.asarray(head, np.int32), tokens])
        return row, (np.append(np.zeros(len(head)), weights) * (length - 1) / count).astype(
            np.float32
        )

    def _tokens(
        self, rng: np.random.Generator, tokenizer: Encoder, count: int, haystack: Haystack
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs int32[count, 2] and the tokens around them."""
        passage, _ = draw_haystack(rng, haystack, max(4096, 64 * count))
        known = rng.permutation(np.unique(passage))
        if len(known) <= 2 * count:
            raise ValueError(
                f"{self.name}: {count} pairs need more than {2 * count} different tokens, the haystack "
                f"has {len(known)} of {tokenizer.vocab_size}: ask for fewer pairs"
            )
        return known[: 2 * count].reshape(count, 2), known[2 * count :]
