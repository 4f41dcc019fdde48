"""Variable tracking: names set to a value, to a name of it, to a name of that (RULER's vt, arXiv 2404.06654)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import numpy as np

from ctxext.tasks.base import Encoder, Example, Haystack, Task, encode_piece
from ctxext.tasks.building.needles import MOST_LISTS, listed
from ctxext.tasks.building.noise import SENTENCES, noise, without_pieces
from ctxext.tasks.building.placement import place
from ctxext.tasks.building.vocabulary import distinct


@dataclass(frozen=True)
class VariableTracking(Task):
    """`num_chains` values, each handed on `hops` times: `Let zubad be 48213.`, `Let fikon be zubad.`, and so on.

    Asked are all names of one value, after an example that is drawn anew for each question. The score is the share of
    names found; `room` tokens are kept for them at least. The first link stands at the depth, the others behind it.
    """

    name: ClassVar[str] = "vt"
    num_chains: int = 1
    hops: int = 4
    hay: Literal["text", "noise"] = "noise"
    room: int = 0

    def __post_init__(self) -> None:
        if self.num_chains < 1 or self.hops < 1 or self.hay not in ("text", "noise"):
            raise ValueError(
                f"vt: {self.num_chains} chains of {self.hops} hops in {self.hay!r}: give at least one of "
                "each, and text or noise"
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
        """The first link at `depth` and all others behind it, in exactly `seq_len` tokens, room for names included."""
        size, chains = self.hops + 1, self.num_chains + 1
        words = np.reshape(
            list(islice(distinct(rng, "coined"), chains * size)), (chains, size)
        ).tolist()
        values = [str(value) for value in 10_000 + rng.choice(90_000, chains, replace=False)]
        depths = np.sort(rng.random((self.num_chains, size)), 1)
        if depth is not None:
            depths[0] = [depth, *np.sort(rng.uniform(min(depth, 1.0), 1.0, self.hops))]
        links = sorted(
            (float(depths[i, j]), i, j, encode_piece(tokenizer, f"\n{line}\n"))
            for i in range(self.num_chains)
            for j, line in enumerate(_lines(words[i], values[i]))
        )
        names = [[encode_piece(tokenizer, f" {word}") for word in chain] for chain in words]
        answer, *wrong = [listed(tokenizer, chain) for chain in names]
        shot = (
            self._shot(rng, tokenizer, words[-1], values[-1])
            + wrong[-1]
            + encode_piece(tokenizer, "\n")
        )
        room = max(self.room, *map(len, [answer, *wrong]))
        placed = place(
            rng,
            tokenizer,
            seq_len,
            [(at, ids) for at, *_, ids in links],
            task=self.name,
            head=shot,
            tail=_question(tokenizer, values[0]),
            room=room,
            ordered=True,
            haystack=noise(tokenizer) if self.hay == "noise" else haystack,
        )
        asked = [n for n, (_, chain, *_) in enumerate(links) if chain == 0]
        spans = [[placed.starts[n], len(links[n][-1])] for n in asked]
        meta = {
            "needles": spans,
            "distance": len(placed.prompt) - spans[0][0],
            "value": values[0],
            "haystack": placed.haystack,
        }
        example = Example(
            placed.prompt,
            np.asarray(answer, np.int32),
            placed.depths[asked[0]],
            meta,
            metric="all",
            references=tuple(words[0]),
            decoys=tuple(word for chain in words[1:] for word in chain),
            choices=tuple(np.asarray(ids, np.int32) for ids in wrong[:MOST_LISTS]),
            room=room,
            line=True,
        )
        return without_pieces(example) if self.hay == "noise" else example

    @staticmethod
    def _shot(
        rng: np.random.Generator, tokenizer: Encoder, words: Sequence[str], value: str
    ) -> list[int]:
        """A chain of its own in a layout of its own, and the question about it."""
        text = ""
        for line in _lines(words, value):
            text += "".join(rng.permutation(SENTENCES)[: rng.integers(3)]) + f"\n{line}\n"
        return encode_piece(tokenizer, text) + _question(tokenizer, value)


def _lines(words: Sequence[str], value: str) -> list[str]:
    return [
        f"Let {name} be {before}." for name, before in zip(words, (value, *words), strict=False)
    ]


def _question(tokenizer: Encoder, value: str) -> list[int]:
    return encode_piece(tokenizer, f"\nNames that stand for {value}, from first to last:")
