"""LongPPL (arXiv 2410.23771): perplexity of the key tokens alone, those that only a long context explains."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, Model, choose, fingerprint, num_bytes
from ctxext.evals.key_tokens import Found, Keys
from ctxext.tasks.base import bos_prefix


@dataclass(frozen=True)
class LongPPL(Eval):
    """exp(mean loss of the key tokens) over the first `seq_len` tokens (BOS counted) of `num_documents` documents.

    `keys` says which tokens those are (`ctxext.evals.key_tokens`); the mean over documents is weighted by their number, and a
    document without any counts for nothing. Rows also hold the loss of all tokens of the same pass (`all_nll`,
    `all_count`). Raises ValueError for documents that are too short.
    """

    name: ClassVar[str] = "longppl"
    seq_lens: tuple[int, ...]
    num_documents: int = 8
    keys: Keys = Found()
    source: TextSource = Stdlib("heldout")
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.seq_lens or min(self.seq_lens) < 3 or self.num_documents < 1:
            raise ValueError(
                "longppl: needs lengths of at least 3 tokens and num_documents of at least 1"
            )

    def items(self) -> list[str]:
        """`longppl/<settings>/<length>/<document>`; the settings hold the longest length, which picks documents."""
        return list(self._grid())

    def _grid(self) -> dict[str, tuple[int, int]]:
        settings = fingerprint(self.keys, self.source, self.seed, max(self.seq_lens))
        return {
            f"{self.name}/{settings}/{seq_len}/{document}": (seq_len, document)
            for seq_len in self.seq_lens
            for document in range(self.num_documents)
        }

    def check(self, tokenizer: Any) -> None:
        self._chosen(tokenizer)

    def _chosen(self, tokenizer: Any) -> list[tuple[int, np.ndarray]]:
        order = f"longppl/{fingerprint(self.source, self.seed)}"
        return choose(
            self,
            order,
            source=self.source,
            tokenizer=tokenizer,
            count=self.num_documents,
            needed=max(self.seq_lens) - len(bos_prefix(tokenizer)),
        )

    def rows(self, lm: Model, items: Collection[str]) -> Iterator[dict[str, Any]]:
        bos, chosen = len(bos_prefix(lm.tokenizer)), self._chosen(lm.tokenizer)
        names = set(items)
        for item, (seq_len, k) in self._grid().items():
            if item in names:
                number, document = chosen[k]
                ids, keys = self.keys.read(lm, document[: seq_len - bos], number, item=item)
                nats = np.asarray(lm.loss(ids[None])[0], np.float64)
                yield {
                    "eval": self.name,
                    "estimator": self.name,
                    "keys_from": self.keys.origin,
                    "item": item,
                    "seq_len": seq_len,
                    "document": number,
                    "keys": keys.tolist(),
                    "nll": float(nats[keys - 1].sum()),
                    "count": len(keys),
                    "bytes": sum(_width(lm, ids, key) for key in keys),
                    "all_nll": float(nats.sum()),
                    "all_count": len(nats),
                }


def _width(lm: Model, ids: np.ndarray, position: int) -> int:
    """Bytes that a token adds to the one before it."""
    return num_bytes(lm.tokenizer, ids[position - 1 : position + 1]) - num_bytes(
        lm.tokenizer, ids[position - 1 : position]
    )
