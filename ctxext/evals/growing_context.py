"""Perplexity of the same target tokens with growing context, and by position in the longest one."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, Model, batches, choose, fingerprint, item_rng, num_bytes
from ctxext.tasks.base import bos_prefix


@dataclass(frozen=True)
class Perplexity(Eval):
    """The last `target_tokens` tokens of a window are scored with `seq_len - target_tokens` tokens before them.

    Only the context differs between `seq_lens`, never what is predicted (estimator "same-target"). `num_documents`
    documents that are long enough for the longest window, `num_windows` windows of each; every window starts with BOS.
    Rows hold sums, so that exp(sum nll / sum count) over any choice of rows is a perplexity; the rows of the longest
    length also hold `by_position`: nats and counts for bins [edge, next edge) of the number of tokens seen before.
    """

    name: ClassVar[str] = "ppl"
    seq_lens: tuple[int, ...]
    num_documents: int = 8
    target_tokens: int = 128
    num_windows: int = 1
    source: TextSource = Stdlib("heldout")
    seed: int = 0
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if not self.seq_lens or not 1 <= self.target_tokens < min(self.seq_lens):
            raise ValueError(
                f"ppl: target_tokens {self.target_tokens} must be at least 1 and below every length of "
                f"{list(self.seq_lens)}"
            )
        if self.num_documents < 1 or self.num_windows < 1:
            raise ValueError("ppl: num_documents and num_windows must be at least 1")

    def items(self) -> list[str]:
        """`ppl/<settings>/<length>/<document>/<window>`; the settings hold the longest length, which picks windows."""
        return list(self._grid())

    def _grid(self) -> dict[str, tuple[int, int, int]]:
        return {
            f"ppl/{self._settings()}/{seq_len}/{document}/{window}": (seq_len, document, window)
            for seq_len in self.seq_lens
            for document in range(self.num_documents)
            for window in range(self.num_windows)
        }

    def _settings(self) -> str:
        return fingerprint(self.source, self.seed, self.target_tokens, max(self.seq_lens))

    def check(self, tokenizer: Any) -> None:
        self._chosen(tokenizer)

    def _chosen(self, tokenizer: Any) -> list[tuple[int, np.ndarray]]:
        """Numbers and ids of the chosen documents, in an order that the seed shuffles."""
        return choose(
            self,
            f"ppl/{self._settings()}",
            source=self.source,
            tokenizer=tokenizer,
            count=self.num_documents,
            needed=max(self.seq_lens) - len(bos_prefix(tokenizer)),
        )

    def rows(self, lm: Model, items: Collection[str]) -> Iterator[dict[str, Any]]:
        chosen, longest, head = (
            self._chosen(lm.tokenizer),
            max(self.seq_lens),
            bos_prefix(lm.tokenizer),
        )
        names = set(items)
        wanted = [(item, *cell) for item, cell in self._grid().items() if item in names]
        for seq_len in self.seq_lens:
            for batch in batches(
                [entry for entry in wanted if entry[1] == seq_len],
                max(1, self.batch_tokens // seq_len),
            ):
                spans = []
                for _, _, document, window in batch:
                    ids = chosen[document][1]
                    rng = item_rng(
                        f"ppl/{self._settings()}/{document}/{window}"
                    )  # no length: the same targets for all
                    spans.append(ids[: rng.integers(longest - len(head), len(ids) + 1)])
                windows = np.stack(
                    [np.concatenate([head, ids[len(head) - seq_len :]]) for ids in spans]
                )
                losses = np.asarray(lm.loss(windows.astype(np.int32)), np.float64)
                for (item, *_, document, window), ids, nats in zip(
                    batch, spans, losses, strict=True
                ):
                    target = ids[-self.target_tokens :]
                    context = ids[len(head) - longest : -self.target_tokens]
                    yield {
                        "eval": self.name,
                        "estimator": "same-target",
                        "item": item,
                        "seq_len": seq_len,
                        "document": chosen[document][0],
                        "window_index": window,
                        "target_start": len(ids) - self.target_tokens,
                        "target_sha256": hashlib.sha256(target.astype("<i4").tobytes()).hexdigest(),
                        "nll": float(nats[-self.target_tokens :].sum()),
                        "count": self.target_tokens,
                        "bytes": num_bytes(lm.tokenizer, np.append(context, target))
                        - num_bytes(lm.tokenizer, context),
                        **({"by_position": by_position(nats)} if seq_len == longest else {}),
                    }


def by_position(nats: np.ndarray, windows: int = 1) -> dict[str, list[Any]]:
    """Sums of nats[t], the loss after t + 1 tokens, summed over `windows` windows, in bins that double."""
    seen = np.arange(1, len(nats) + 1)
    bins = np.log2(seen).astype(int)
    return {
        "edges": [2**i for i in range(bins[-1] + 1)] + [len(nats) + 1],
        "nll": np.bincount(bins, nats).tolist(),
        "count": (windows * np.bincount(bins)).tolist(),
    }
