"""A name found by what is known about the world, not by repeated words: needle and question share none of substance.

The idea is that of arXiv 2502.05167; pairs and names are our own (`tasks.pairs`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, Task, encode_piece
from ctxext.tasks.building.clean import draw_without
from ctxext.tasks.building.pairs import FUNCTION_WORDS, NAMES, NEEDLES, PAIRS, QUESTION
from ctxext.tasks.building.placement import place


@dataclass(frozen=True)
class Association(Task):
    """`num_needles` sentences about different people in the haystack; asked is who of them something follows for.

    literal: the control, which asks for the very words of the needle; what the two differ by is the association. Row
    field `overlap`: the share of the question's content words that stand in its needle. The haystack says no name.
    """

    name: ClassVar[str] = "association"
    supports_shared_context: ClassVar[bool] = True
    num_needles: int = 4
    literal: bool = False

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """The needle asked for at `depth`, the others anywhere, in exactly `seq_len` tokens, answer included."""
        depth = float(rng.random()) if depth is None else depth
        return self.exam(rng, tokenizer, seq_len, depths=[depth], haystack=haystack)[0]

    def exam(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depths: Sequence[float],
        haystack: Haystack,
    ) -> list[Example]:
        """A needle at each depth and a question for each; further needles, if `num_needles` is more, anywhere."""
        count = max(self.num_needles, len(depths))
        if not 1 <= count <= len(NAMES):
            raise ValueError(
                f"{self.name}: {count} needles do not fit {len(NAMES)} names: ask for 1 to {len(NAMES)}"
            )
        names = [NAMES[i] for i in rng.permutation(len(NAMES))[:count]]
        pairs = [PAIRS[i] for i in rng.permutation(len(PAIRS))[:count]]
        forms = [NEEDLES[i] for i in rng.integers(len(NEEDLES), size=count)]
        needles = [
            form.format(name=name, fact=pair.fact)
            for form, name, pair in zip(forms, names, pairs, strict=True)
        ]
        asked = [
            QUESTION.format(asked=pair.fact if self.literal else pair.asked)
            for pair in pairs[: len(depths)]
        ]
        ids = [encode_piece(tokenizer, f"\n{needle}\n") for needle in needles]
        tails = [
            np.asarray(encode_piece(tokenizer, f"\n{question}"), np.int32) for question in asked
        ]
        answers = {
            name: np.asarray(encode_piece(tokenizer, f" {name}"), np.int32) for name in NAMES
        }
        room = max(map(len, answers.values()))
        placed = place(
            rng,
            tokenizer,
            seq_len,
            list(zip([*depths, *[None] * (count - len(depths))], ids, strict=True)),
            task=self.name,
            tail=(),
            room=max(map(len, tails)) + room,
            haystack=lambda size: draw_without(rng, tokenizer, haystack, size, NAMES),
        )
        out = []
        for i, tail in enumerate(tails):
            prompt, others = np.concatenate([placed.prompt, tail]), [*names[:i], *names[i + 1 :]]
            distances = [len(prompt) - start for start in placed.starts]
            meta = {
                "value": names[i],
                "pair": PAIRS.index(pairs[i]),
                "overlap": overlap(asked[i], needles[i]),
                "needles": [[placed.starts[i], len(ids[i])]],
                "distance": distances[i],
                "distances": [distances[i], *distances[:i], *distances[i + 1 :]],
                "haystack": placed.haystack,
            }
            out.append(
                Example(
                    prompt,
                    answers[names[i]],
                    placed.depths[i],
                    meta,
                    metric="any",
                    references=(names[i],),
                    decoys=tuple(others),
                    choices=tuple(answers[name] for name in others),
                    room=room,
                    line=True,
                    shared=len(placed.prompt),
                )
            )
        return out


def content_words(text: str) -> set[str]:
    """Words in lower case without those that only hold a sentence together."""
    return set(re.findall(r"[^\W\d_]+", text.lower())) - FUNCTION_WORDS


def overlap(question: str, needle: str) -> float:
    """The share of the question's content words that stand in the needle, 0..1."""
    asked = content_words(question)
    return len(asked & content_words(needle)) / len(asked)
