"""The common part of the evaluations that measure the loss of documents, at several lengths."""

import dataclasses
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, documents, fingerprint, item_rng
from ctxext.evals.budget import Budget
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
class Cell:
    """An item's place in the grid: a document at a length."""

    item: str
    seq_len: int
    document: int
    """Index among the chosen documents."""
    window: int = 0
    """Index among the item's windows of that document and length."""


@dataclass(frozen=True)
class Document:
    """A document that was chosen for an evaluation."""

    number: int
    """Number in the source."""
    ids: np.ndarray


@dataclass(frozen=True)
class DocumentEval(Eval):
    """Measures the loss of `num_documents` documents of a source, at each of `seq_lens`."""

    seq_lens: tuple[int, ...]
    _: KW_ONLY
    num_documents: int = 8
    source: TextSource = Stdlib("heldout")
    seed: int = 0
    _text_option: ClassVar[str] = ""
    """How to give the text on the command line, for a message."""

    def items(self) -> list[str]:
        """`<title>/<settings>/<length>/<document>`; `Perplexity` adds the window."""
        return [cell.item for cell in self._grid()]

    def measurements(self) -> list[Measurement]:
        return [Measurement(self.title, n, "perplexity") for n in self.seq_lens]

    def within(self, budget: Budget) -> "DocumentEval":
        return dataclasses.replace(self, num_documents=min(self.num_documents, budget.documents))

    def check(self, tokenizer: Any) -> None:
        self._documents(tokenizer)

    @property
    def _documents_seed(self) -> str:
        """Seeds the order of the documents."""
        return f"{self.name}/{fingerprint(self.source, self.seed)}"

    def _min_tokens(self, tokenizer: Any) -> int:
        """Tokens that a document must have: the longest length, less BOS."""
        return max(self.seq_lens) - len(bos_prefix(tokenizer))

    def _grid(self) -> list[Cell]:
        settings = self._settings
        return [
            Cell(f"{self.title}/{settings}/{seq_len}/{document}", seq_len, document)
            for seq_len in self.seq_lens
            for document in range(self.num_documents)
        ]

    def _cells(self, items: Collection[str]) -> list[Cell]:
        """The cells of the named items, in the order of the grid."""
        names = set(items)
        return [cell for cell in self._grid() if cell.item in names]

    def _documents(self, tokenizer: Any) -> list[Document]:
        """The first long enough documents, in an order that a seed shuffles.

        Raises ValueError if there are too few.
        """
        min_tokens = self._min_tokens(tokenizer)
        chosen = self._long_enough(tokenizer)
        if len(chosen) < self.num_documents:
            raise ValueError(
                f"{self.title} needs {self.num_documents} documents of at least {min_tokens} "
                f"tokens, and the text has {len(chosen)} (a file of plain text is one document): "
                f"give more or longer ones{self._text_option}, a shorter length, or the other "
                "evaluations alone (ctxext eval: --evals)"
            )
        return chosen[: self.num_documents]

    def _long_enough(self, tokenizer: Any) -> list[Document]:
        """Every document that is long enough, in an order that a seed shuffles."""
        texts = documents(self.source, tokenizer)
        min_tokens = self._min_tokens(tokenizer)
        order = item_rng(self._documents_seed).permutation(len(texts))
        return [Document(int(i), texts[i]) for i in order if len(texts[i]) >= min_tokens]

    def _record(
        self,
        cell: Cell,
        document: Document,
        model: EvaluatedModel,
        *,
        estimator: LossEstimator,
        scores: LossScores,
        facts: dict[str, Any] | None = None,
    ) -> LossRecord:
        return LossRecord(
            model=model,
            evaluation=self.title,
            item=cell.item,
            settings=self._settings,
            protocol=self.protocol,
            seq_len=cell.seq_len,
            cluster=Cluster(document=document.number, text=cell.item),
            facts=facts or {},
            estimator=estimator,
            scores=scores,
        )
