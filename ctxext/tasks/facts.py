"""Facts about a small world scattered in a long text, in their order, and a question that some of them decide.

The idea is that of arXiv 2406.10149; world and words are our own (`tasks.world`).
"""

from dataclasses import dataclass
from typing import ClassVar, get_args

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, Task, encode_piece
from ctxext.tasks.building.clean import draw_without
from ctxext.tasks.building.placement import check_depth, place
from ctxext.tasks.building.world import Kind, tell


@dataclass(frozen=True)
class Facts(Task):
    """`num_facts` sentences in the haystack and a question of `kind` (`world.tell`), which a single word completes.

    Right is who writes that word and no other of its kind, those in the question left aside. The haystack does not say
    it.
    """

    name: ClassVar[str] = "facts"
    kind: Kind = "place"
    num_facts: int = 8

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"{self.name}: {self.kind!r} is not known; choose one of {', '.join(get_args(Kind))}"
            )

    def example(
        self,
        rng: np.random.Generator,
        tokenizer: Encoder,
        seq_len: int | None,
        *,
        depth: float | None = None,
        haystack: Haystack,
    ) -> Example:
        """The last fact that decides the answer is at `depth`, in exactly `seq_len` tokens, answer included.

        Where all facts are is a sorted draw of uniform numbers, given that this one of them is `depth`.
        """
        check_depth(depth, self.name)
        story = tell(rng, self.kind, self.num_facts)
        places = np.sort(rng.random(self.num_facts))
        if depth is not None:
            last = story.support[
                -1
            ]  # order statistics on both sides of one that is given are uniform again
            before, after = (
                rng.random(last) * depth,
                depth + rng.random(self.num_facts - last - 1) * (1 - depth),
            )
            places = np.concatenate([np.sort(before), [depth], np.sort(after)])
        facts = [encode_piece(tokenizer, f"\n{fact}\n") for fact in story.facts]
        words = {label: encode_piece(tokenizer, f" {label}") for label in story.labels}
        others = [
            label for label in story.labels if label != story.answer and label not in story.question
        ]
        room = max(map(len, words.values()))
        placed = place(
            rng,
            tokenizer,
            seq_len,
            list(zip(places.tolist(), facts, strict=True)),
            task=f"{self.name}, {self.kind}",
            tail=encode_piece(tokenizer, f"\n{story.question}"),
            room=room,
            ordered=True,
            haystack=lambda count: draw_without(rng, tokenizer, haystack, count, [story.answer]),
        )
        needles = [[placed.starts[i], len(facts[i])] for i in story.support]
        meta = {
            "value": story.answer,
            "needles": needles,
            "distance": len(placed.prompt) - needles[0][0],
            "distances": [len(placed.prompt) - start for start, _ in needles],
            "haystack": placed.haystack,
        }
        return Example(
            placed.prompt,
            np.asarray(words[story.answer], np.int32),
            placed.depths[story.support[-1]],
            meta,
            metric="label",
            references=(story.answer,),
            decoys=tuple(others),
            choices=tuple(np.asarray(words[label], np.int32) for label in others),
            room=room,
            line=True,
        )
