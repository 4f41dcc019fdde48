"""LongPPL (arXiv 2410.23771): perplexity of the tokens that only a long context explains."""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.evals.base import Model, num_bytes
from ctxext.evals.document_eval import DocumentEval
from ctxext.evals.key_tokens import ContrastiveKeys, Keys
from ctxext.evals.record import EvaluatedModel, LossEstimator, LossRecord, LossScores
from ctxext.tasks.base import bos_prefix


@dataclass(frozen=True)
class LongPPL(DocumentEval):
    """exp(mean loss of the key tokens) over the first `seq_len` tokens of documents.

    Lengths count BOS. `keys` decides which tokens are key tokens (`ctxext.evals.key_tokens`). The
    mean over the `num_documents` documents is weighted by their number, so that a document without
    key tokens counts for nothing. Records also hold the loss of all tokens of the same pass.

    Raises ValueError for documents that are too short.
    """

    name: ClassVar[str] = "longppl"
    keys: Keys = ContrastiveKeys()
    """How key tokens are chosen."""

    def __post_init__(self) -> None:
        if not self.seq_lens or min(self.seq_lens) < 3 or self.num_documents < 1:
            raise ValueError(
                "longppl: needs lengths of at least 3 tokens and num_documents of at least 1"
            )

    def _protocol(self) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "source": self.source,
            "seed": self.seed,
            # It decides which documents are read.
            "longest": max(self.seq_lens),
        }

    def read_only_by(self, model: Model) -> "LongPPL":
        if not isinstance(self.keys, ContrastiveKeys) or not self.keys.evaluator:
            return self
        return dataclasses.replace(self, keys=dataclasses.replace(self.keys, load=lambda _: model))

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[LossRecord]:
        num_bos = len(bos_prefix(lm.tokenizer))
        documents = self._documents(lm.tokenizer)
        for cell in self._cells(items):
            document = documents[cell.document]
            text = document.ids[: cell.seq_len - num_bos]
            ids, keys = self.keys.read(lm, text, document.number, item=cell.item)
            nll = np.asarray(lm.loss(ids[None])[0], np.float64)
            yield self._record(
                cell,
                document,
                model,
                estimator=LossEstimator(self.name, keys_from=self.keys.origin),
                scores=LossScores(
                    nll=float(nll[keys - 1].sum()),
                    count=len(keys),
                    num_bytes=sum(_width(lm, ids, key) for key in keys),
                    all_nll=float(nll.sum()),
                    all_count=len(nll),
                ),
                facts={"keys": keys.tolist()},
            )


def _width(lm: Model, ids: np.ndarray, position: int) -> int:
    """Bytes that a token adds to the one before it."""
    both = num_bytes(lm.tokenizer, ids[position - 1 : position + 1])
    return both - num_bytes(lm.tokenizer, ids[position - 1 : position])
