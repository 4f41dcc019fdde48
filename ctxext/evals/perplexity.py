"""Perplexity of the same target tokens with growing context, and by position in the longest one."""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.evals.base import Model, batches, ids_sha256, item_rng, num_bytes
from ctxext.evals.budget import Budget
from ctxext.evals.document_eval import Cell, Document, DocumentEval
from ctxext.evals.record import (
    EvaluatedModel,
    LossEstimator,
    LossRecord,
    LossScores,
    PositionLosses,
)
from ctxext.tasks.base import bos_prefix

SAME_TARGET = LossEstimator("same-target")


@dataclass(frozen=True)
class Perplexity(DocumentEval):
    """The loss of the last `target_tokens` tokens of a window, after all tokens before them.

    Lengths differ only in the context, never in what is predicted (estimator "same-target").
    There are `num_windows` windows of each of `num_documents` documents that are long enough for
    the longest length; every window starts with BOS. The records of the longest length also hold
    the losses by position.
    """

    name: ClassVar[str] = "ppl"
    target_tokens: int = 128
    """Tokens that are predicted, the same at every length."""
    num_windows: int = 1
    """Windows per document."""
    batch_tokens: int = 16_384
    label: str = ""
    """Tells it apart from another one with other text: "ppl:own" for "own"."""

    @property
    def title(self) -> str:
        return f"{self.name}:{self.label}" if self.label else self.name

    def __post_init__(self) -> None:
        if not self.seq_lens or not 1 <= self.target_tokens < min(self.seq_lens):
            raise ValueError(
                f"ppl: target_tokens {self.target_tokens} must be at least 1 and below every "
                f"length of {list(self.seq_lens)}"
            )
        if self.num_documents < 1 or self.num_windows < 1:
            raise ValueError("ppl: num_documents and num_windows must be at least 1")

    def within(self, budget: Budget) -> "Perplexity":
        return dataclasses.replace(
            self,
            num_documents=min(self.num_documents, budget.documents),
            num_windows=min(self.num_windows, budget.windows),
        )

    def _grid(self) -> list[Cell]:
        return [
            dataclasses.replace(cell, item=f"{cell.item}/{window}", window=window)
            for cell in super()._grid()
            for window in range(self.num_windows)
        ]

    def _protocol(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "seed": self.seed,
            "target_tokens": self.target_tokens,
            # It decides where the windows are.
            "longest": max(self.seq_lens),
        }

    @property
    def _documents_seed(self) -> str:
        return f"ppl/{self._settings}"

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[LossRecord]:
        documents = self._documents(lm.tokenizer)
        cells = self._cells(items)
        for seq_len in self.seq_lens:
            of_length = [cell for cell in cells if cell.seq_len == seq_len]
            for batch in batches(of_length, max(1, self.batch_tokens // seq_len)):
                yield from self._batch_records(lm, batch, documents, model)

    def _batch_records(
        self, lm: Model, batch: list[Cell], documents: list[Document], model: EvaluatedModel
    ) -> Iterator[LossRecord]:
        """Records of cells of one length."""
        seq_len = batch[0].seq_len
        longest = max(self.seq_lens)
        bos = bos_prefix(lm.tokenizer)
        # The documents up to the end of each window; the same end for all lengths.
        spans = []
        for cell in batch:
            ids = documents[cell.document].ids
            rng = item_rng(f"ppl/{self._settings}/{cell.document}/{cell.window}")
            spans.append(ids[: rng.integers(longest - len(bos), len(ids) + 1)])
        windows = np.stack([np.concatenate([bos, ids[len(bos) - seq_len :]]) for ids in spans])
        losses = np.asarray(lm.loss(windows.astype(np.int32)), np.float64)
        for cell, ids, nll in zip(batch, spans, losses, strict=True):
            target = ids[-self.target_tokens :]
            context = ids[len(bos) - longest : -self.target_tokens]
            yield self._record(
                cell,
                documents[cell.document],
                model,
                estimator=SAME_TARGET,
                scores=LossScores(
                    nll=float(nll[-self.target_tokens :].sum()),
                    count=self.target_tokens,
                    num_bytes=num_bytes(lm.tokenizer, np.append(context, target))
                    - num_bytes(lm.tokenizer, context),
                    by_position=by_position(nll) if seq_len == longest else None,
                ),
                facts={
                    "window_index": cell.window,
                    "target_start": len(ids) - self.target_tokens,
                    "target_sha256": ids_sha256(target),
                },
            )


def by_position(nll: np.ndarray, num_windows: int = 1) -> PositionLosses:
    """Sums of nll[t], the loss after t + 1 tokens, in bins that double.

    nll: float [T], itself summed over `num_windows` windows.
    """
    seen = np.arange(1, len(nll) + 1)
    bins = np.log2(seen).astype(int)
    edges = [*(2**i for i in range(bins[-1] + 1)), len(nll) + 1]
    return PositionLosses(
        edges=tuple(edges),
        nll=tuple(np.bincount(bins, nll).tolist()),
        count=tuple((num_windows * np.bincount(bins)).tolist()),
    )
