"""Perplexity by the estimators of papers, with windows that roll over documents or one stream."""

import dataclasses
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.evals.base import Model, batches, num_bytes
from ctxext.evals.budget import Budget
from ctxext.evals.document_eval import Cell, Document, DocumentEval
from ctxext.evals.perplexity import by_position
from ctxext.evals.perplexity_estimators import ESTIMATORS, Estimator, Window, first, windows
from ctxext.evals.record import EvaluatedModel, LossEstimator, LossRecord, LossScores, WindowLosses
from ctxext.tasks.base import bos_prefix, encode_fragment


@dataclass
class Sums:
    """Sums over the windows of one document."""

    nll: list[float]
    """Nats of each window's scored tokens."""
    count: list[int]
    """Scored tokens of each window."""
    by_position: np.ndarray
    """Nats by position, over whole windows."""
    num_whole: int = 0
    num_bytes: int = 0

    def add(self, i: int, window: Window, nll: np.ndarray, tokenizer: Any) -> None:
        """Add window `i`, with the losses of all of its tokens."""
        self.nll[i] = float(nll[len(nll) - window.scored :].sum())
        before = window.ids[: -window.scored]
        self.num_bytes += num_bytes(tokenizer, window.ids) - num_bytes(tokenizer, before)
        if len(nll) == len(self.by_position):
            self.by_position += nll
            self.num_whole += 1


@dataclass(frozen=True)
class RollingPerplexity(DocumentEval):
    """Perplexity by one of `perplexity_estimators.ESTIMATORS`.

    Windows of `seq_len` tokens (with BOS, where the estimator has one) start every `stride`
    tokens; "truncate" has one window per document. They cover `num_documents` documents of at
    least `min_tokens` tokens (at least the longest length, where every document is its own text),
    each cut to its first `max_tokens` (None: whole). With the same source, seed and min_tokens all
    estimators read the same documents; a stream joins them with a blank line.

    One record per document and length, with the sums of its windows in order. A window of a stream
    counts for the document of the first token that it scores, so that a short document may have
    none. Records of the longest length also hold the losses by position, over whole windows.
    Documents can be added later, except to a stream, which they would change.

    Raises ValueError if there is too little text.
    """

    name: ClassVar[str] = "ppl"
    estimator: str = "yarn"
    """A name of `perplexity_estimators.ESTIMATORS`."""
    stride: int = 256
    """Tokens from one window to the next."""
    min_tokens: int = 0
    """Only documents of at least this many tokens."""
    max_tokens: int | None = None
    """Documents are cut to their first tokens; None keeps them whole."""
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator {self.estimator!r} is not known; choose one of "
                f"{', '.join(ESTIMATORS)}, or Perplexity for the same targets at every length"
            )
        if not self.seq_lens or min(self.seq_lens) < 2 or self.num_documents < 1:
            raise ValueError(
                f"{self.title}: needs lengths of at least 2 tokens and num_documents of at least 1"
            )
        most = min(self.seq_lens) - (self._estimator.bos == "window")
        if self._stride is not None and not 1 <= self.stride <= most:
            raise ValueError(
                f"{self.title}: windows of {min(self.seq_lens)} tokens at stride {self.stride} "
                f"would leave tokens out; give 1 <= stride <= {most}"
            )
        if self.max_tokens is not None and self.max_tokens < max(self.required_tokens, 2):
            raise ValueError(
                f"{self.title}: max_tokens {self.max_tokens} is below the {self.required_tokens} "
                "tokens that a document must have"
            )

    @property
    def _estimator(self) -> Estimator:
        return ESTIMATORS[self.estimator]

    @property
    def _stride(self) -> int | None:
        return None if self._estimator.spans is first else self.stride

    @property
    def required_tokens(self) -> int:
        """Tokens that a document must have, without BOS and EOS."""
        return max(self.min_tokens, 1 if self._estimator.stream else max(self.seq_lens))

    @property
    def title(self) -> str:
        return f"{self.name}:{self.estimator}"

    def _protocol(self) -> dict[str, Any]:
        return {
            "estimator": self.estimator,
            "source": self.source,
            "seed": self.seed,
            "stride": self._stride,
            "min_tokens": self.min_tokens,
            "max_tokens": self.max_tokens,
            "longest": max(self.seq_lens),
            # More documents change a stream.
            "num_documents": self.num_documents if self._estimator.stream else None,
        }

    def within(self, budget: Budget) -> "RollingPerplexity":
        """Fewer documents would be another stream, so that a stream is read as a whole."""
        if self._estimator.stream:
            return self
        return dataclasses.replace(self, num_documents=min(self.num_documents, budget.documents))

    def _min_tokens(self, tokenizer: Any) -> int:
        return self.required_tokens

    def records(
        self, lm: Model, items: Collection[str], model: EvaluatedModel
    ) -> Iterator[LossRecord]:
        documents = self._documents(lm.tokenizer)
        cells = self._cells(items)
        for seq_len in self.seq_lens:
            of_length = {cell.document: cell for cell in cells if cell.seq_len == seq_len}
            if not of_length:
                continue
            by_document = self._windows(documents, seq_len, lm.tokenizer)
            chosen = {document: by_document.get(document, []) for document in of_length}
            for document, sums in self._measure(lm, chosen, seq_len):
                yield self._sums_record(of_length[document], documents[document], sums, model)

    def _windows(
        self, documents: list[Document], seq_len: int, tokenizer: Any
    ) -> dict[int, list[Window]]:
        """The windows of every document, in order."""
        all_windows = windows(
            self._estimator,
            [document.ids[: self.max_tokens] for document in documents],
            seq_len=seq_len,
            stride=self.stride,
            bos=bos_prefix(tokenizer),
            separator=encode_fragment(tokenizer, "\n\n"),
        )
        if not any(len(window.ids) == seq_len for window in all_windows):
            raise ValueError(
                f"{self.title}: the documents hold no window of {seq_len} tokens: lower the "
                "length, or raise num_documents or max_tokens"
            )
        by_document: dict[int, list[Window]] = {}
        for window in all_windows:
            by_document.setdefault(window.document, []).append(window)
        return by_document

    def _measure(
        self, lm: Model, by_document: dict[int, list[Window]], seq_len: int
    ) -> Iterator[tuple[int, Sums]]:
        """Yield the sums of each document as soon as its windows are done.

        Windows of equal length go through the model together.
        """
        sums = {
            document: Sums([0.0] * len(own), [w.scored for w in own], np.zeros(seq_len - 1))
            for document, own in by_document.items()
        }
        missing = {document: len(own) for document, own in by_document.items()}
        yield from ((document, sums[document]) for document in missing if not missing[document])
        # Short windows, at most one per text, go first: then the documents finish one by one.
        todo = [
            (len(window.ids), document, i, window)
            for document, own in by_document.items()
            for i, window in enumerate(own)
        ]
        todo.sort(key=lambda entry: entry[0])
        for _, same_length in itertools.groupby(todo, lambda entry: entry[0]):
            for batch in batches(list(same_length), max(1, self.batch_tokens // seq_len)):
                ids = np.stack([window.ids for *_, window in batch])
                losses = np.asarray(lm.loss(ids), np.float64)
                for (_, document, i, window), nll in zip(batch, losses, strict=True):
                    sums[document].add(i, window, nll, lm.tokenizer)
                    missing[document] -= 1
                    if not missing[document]:
                        yield document, sums[document]

    def _sums_record(
        self, cell: Cell, document: Document, sums: Sums, model: EvaluatedModel
    ) -> LossRecord:
        has_positions = sums.num_whole and cell.seq_len == max(self.seq_lens)
        return self._record(
            cell,
            document,
            model,
            estimator=LossEstimator(self.estimator, mean=self._estimator.mean, stride=self._stride),
            scores=LossScores(
                nll=sum(sums.nll),
                count=sum(sums.count),
                num_bytes=sums.num_bytes,
                windows=WindowLosses(tuple(sums.nll), tuple(sums.count)),
                by_position=(
                    by_position(sums.by_position, sums.num_whole) if has_positions else None
                ),
            ),
        )
