"""The loss by position in whole books, each of which is read once, from its beginning."""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.data.sources import text_on_disk
from ctxext.evals.base import Model, batches, num_bytes
from ctxext.evals.budget import Budget
from ctxext.evals.document_eval import DocumentEval
from ctxext.evals.record import (
    EvaluatedModel,
    LossEstimator,
    LossRecord,
    LossScores,
    PositionLosses,
)
from ctxext.tasks.base import bos_prefix

BINS_PER_DOUBLING = 4


@dataclass(frozen=True)
class GrowingWindow(DocumentEval):
    """The loss of every token of the first `seq_len` tokens of books, by position.

    One reading of a book shows every context up to its length: the token at position t is predicted
    from all t tokens before it. It is the cheapest evidence of how far a model reads text, and no
    evidence that it uses what is far away. Lengths count BOS. A method whose frequencies follow the
    length has those of the whole text at every position.

    Raises ValueError for more than one length, and for too few books that are long enough.
    """

    name: ClassVar[str] = "growing-window"
    num_documents: int = 4
    """Books, each of which is a document of the source."""
    batch_tokens: int = 16_384
    _text_option: ClassVar[str] = " (ctxext eval: --books)"

    def __post_init__(self) -> None:
        if len(self.seq_lens) != 1 or self.seq_lens[0] < 3 or self.num_documents < 1:
            raise ValueError(
                f"{self.name}: reads at least one book at a single length of at least 3 tokens, "
                f"which shows all shorter ones too; got {self.num_documents} at "
                f"{list(self.seq_lens)}"
            )

    def _protocol(self) -> dict[str, Any]:
        # The length decides which books are long enough.
        return {"source": self.source, "seed": self.seed, "longest": self.seq_lens[0]}

    @property
    def note(self) -> str:
        """A line that says what is read, and where it is from."""
        paths = [text.path for text in text_on_disk(self.source)]
        place = ", ".join(paths) or "Python's standard library"
        return (
            f"{self.name}: {self.num_documents} documents of at least {self.seq_lens[0]:,} tokens "
            f"from {place} (--books takes other ones)"
        )

    def within(self, budget: Budget) -> "GrowingWindow":
        return dataclasses.replace(self, num_documents=min(self.num_documents, budget.books))

    def fitted(self, tokenizer: Any) -> "GrowingWindow":
        """Of the books that there are, at least two, as one alone has no interval."""
        available = len(self._long_enough(tokenizer))
        most = min(self.num_documents, available)
        return dataclasses.replace(self, num_documents=most) if most > 1 else self

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[LossRecord]:
        books = self._documents(lm.tokenizer)
        bos = bos_prefix(lm.tokenizer)
        (seq_len,) = self.seq_lens
        for batch in batches(self._cells(items), max(1, self.batch_tokens // seq_len)):
            texts = [books[cell.document].ids[: seq_len - len(bos)] for cell in batch]
            rows = np.stack([np.concatenate([bos, text]).astype(np.int32) for text in texts])
            losses = np.asarray(lm.loss(rows), np.float64)
            for cell, row, nll in zip(batch, rows, losses, strict=True):
                yield self._record(
                    cell,
                    books[cell.document],
                    model,
                    estimator=LossEstimator(self.name),
                    scores=LossScores(
                        nll=float(nll.sum()),
                        count=len(nll),
                        num_bytes=num_bytes(lm.tokenizer, row) - num_bytes(lm.tokenizer, row[:1]),
                        by_position=by_fine_position(nll, model.window),
                    ),
                )


def by_fine_position(nll: np.ndarray, window: int) -> PositionLosses:
    """Sums of nll[t], the loss after t + 1 tokens, in four bins per doubling.

    nll: float [T]. There is an edge at the window, so that what is within it is known exactly.
    """
    end = len(nll) + 1
    steps = np.arange(BINS_PER_DOUBLING) + BINS_PER_DOUBLING
    octaves = 2 ** np.arange(end.bit_length())
    edges = {1, *(octaves[:, None] * steps // BINS_PER_DOUBLING).ravel().tolist(), window}
    inner = sorted(edge for edge in edges if edge < end)
    sums = np.add.reduceat(nll, np.array(inner) - 1)
    counts = np.diff([*inner, end])
    return PositionLosses((*inner, end), tuple(sums.tolist()), tuple(counts.tolist()))
