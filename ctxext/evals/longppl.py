"""LongPPL (arXiv 2410.23771): perplexity of the tokens that only a long context explains."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, Model, choose_documents, fingerprint, num_bytes
from ctxext.evals.key_tokens import ContrastiveKeys, Keys
from ctxext.evals.record import (
    Cluster,
    EvaluatedModel,
    LossEstimator,
    LossRecord,
    LossScores,
    Measurement,
)
from ctxext.tasks.base import bos_prefix


@dataclass(frozen=True)
class LongPPL(Eval):
    """exp(mean loss of the key tokens) over the first `seq_len` tokens of documents.

    Lengths count BOS. `keys` decides which tokens are key tokens (`ctxext.evals.key_tokens`). The
    mean over the `num_documents` documents is weighted by their number, so that a document without
    key tokens counts for nothing. Records also hold the loss of all tokens of the same pass.

    Raises ValueError for documents that are too short.
    """

    name: ClassVar[str] = "longppl"
    seq_lens: tuple[int, ...]
    num_documents: int = 8
    keys: Keys = ContrastiveKeys()
    """How key tokens are chosen."""
    source: TextSource = Stdlib("heldout")
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.seq_lens or min(self.seq_lens) < 3 or self.num_documents < 1:
            raise ValueError(
                "longppl: needs lengths of at least 3 tokens and num_documents of at least 1"
            )

    def items(self) -> list[str]:
        """`longppl/<settings>/<length>/<document>`.

        The settings include the longest length, which decides which documents are read.
        """
        return list(self._grid())

    def measurements(self) -> list[Measurement]:
        return [Measurement(self.name, n, "perplexity") for n in self.seq_lens]

    @property
    def _settings(self) -> str:
        return fingerprint(self.keys, self.source, self.seed, max(self.seq_lens))

    def _grid(self) -> dict[str, tuple[int, int]]:
        """(length, document) of every item."""
        settings = self._settings
        return {
            f"{self.name}/{settings}/{seq_len}/{document}": (seq_len, document)
            for seq_len in self.seq_lens
            for document in range(self.num_documents)
        }

    def check(self, tokenizer: Any) -> None:
        self._documents(tokenizer)

    def _documents(self, tokenizer: Any) -> list[tuple[int, np.ndarray]]:
        return choose_documents(
            self,
            seed=f"longppl/{fingerprint(self.source, self.seed)}",
            source=self.source,
            tokenizer=tokenizer,
            count=self.num_documents,
            min_tokens=max(self.seq_lens) - len(bos_prefix(tokenizer)),
        )

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[LossRecord]:
        num_bos = len(bos_prefix(lm.tokenizer))
        texts = self._documents(lm.tokenizer)
        names = set(items)
        for item, (seq_len, document) in self._grid().items():
            if item not in names:
                continue
            number, text = texts[document]
            ids, keys = self.keys.read(lm, text[: seq_len - num_bos], number, item=item)
            nll = np.asarray(lm.loss(ids[None])[0], np.float64)
            yield LossRecord(
                model=model,
                evaluation=self.name,
                item=item,
                settings=self._settings,
                seq_len=seq_len,
                cluster=Cluster(document=number, text=item),
                facts={"keys": keys.tolist()},
                estimator=LossEstimator(self.name, keys_from=self.keys.origin),
                scores=LossScores(
                    nll=float(nll[keys - 1].sum()),
                    count=len(keys),
                    num_bytes=sum(_width(lm, ids, key) for key in keys),
                    all_nll=float(nll.sum()),
                    all_count=len(nll),
                ),
            )


def _width(lm: Model, ids: np.ndarray, position: int) -> int:
    """Bytes that a token adds to the one before it."""
    both = num_bytes(lm.tokenizer, ids[position - 1 : position + 1])
    return both - num_bytes(lm.tokenizer, ids[position - 1 : position])
