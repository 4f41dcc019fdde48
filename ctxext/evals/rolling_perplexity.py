"""Perplexity by the estimators of papers, each under its name: windows roll over documents or over one stream."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, Model, batches, choose, fingerprint, num_bytes
from ctxext.evals.growing_context import by_position
from ctxext.evals.perplexity_estimators import ESTIMATORS, Estimator, Window, first, windows
from ctxext.tasks.base import bos_prefix, encode_fragment


@dataclass
class Sums:
    """What the windows of a document add up to."""

    nll: list[float]
    count: list[int]
    nats: np.ndarray
    """By position, over whole windows."""
    whole: int = 0
    num_bytes: int = 0

    def add(self, i: int, window: Window, nats: np.ndarray, tokenizer: Any) -> None:
        self.nll[i] = float(nats[len(nats) - window.scored :].sum())
        self.num_bytes += num_bytes(tokenizer, window.ids) - num_bytes(
            tokenizer, window.ids[: -window.scored]
        )
        if len(nats) == len(self.nats):
            self.nats += nats
            self.whole += 1


@dataclass(frozen=True)
class RollingPerplexity(Eval):
    """Perplexity by an estimator of `ctxext.evals.perplexity_estimators`: "token", "yarn", "pi", "longlora" or "truncate".

    Windows of `seq_len` tokens (BOS, where the estimator has one, included) start every `stride` tokens ("truncate" has
    one window per document) over `num_documents` documents of at least `min_tokens` tokens (at least the longest length
    where every document is a text of its own), cut to their first `max_tokens` (None: whole). With the same source,
    seed and min_tokens all estimators read the same documents; a stream joins them with a blank line.
    A row is a document at a length and holds the sums of its windows, in order: `windows.nll`, `windows.count`; `mean`
    says what is averaged. A window of a stream counts to the document of the first token it scores, so that a short
    document may have none. Rows of the longest length hold `by_position`, all positions of whole windows.
    Documents can be added later, except to a stream, which they would change. Raises ValueError for too little text.
    """

    name: ClassVar[str] = "ppl"
    seq_lens: tuple[int, ...]
    estimator: str = "yarn"
    stride: int = 256
    num_documents: int = 8
    min_tokens: int = 0
    max_tokens: int | None = None
    source: TextSource = Stdlib("heldout")
    seed: int = 0
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"estimator {self.estimator!r} is not known; choose one of {', '.join(ESTIMATORS)}, or "
                "Perplexity for the same targets at every length"
            )
        if not self.seq_lens or min(self.seq_lens) < 2 or self.num_documents < 1:
            raise ValueError(
                f"{self.title}: needs lengths of at least 2 tokens and num_documents of at least 1"
            )
        most = min(self.seq_lens) - (self._how.bos == "window")
        if self._stride is not None and not 1 <= self.stride <= most:
            raise ValueError(
                f"{self.title}: windows of {min(self.seq_lens)} tokens at stride {self.stride} would "
                f"leave tokens out; give 1 <= stride <= {most}"
            )
        if self.max_tokens is not None and self.max_tokens < max(self.needed, 2):
            raise ValueError(
                f"{self.title}: max_tokens {self.max_tokens} is below the {self.needed} tokens that a "
                "document must have"
            )

    @property
    def _how(self) -> Estimator:
        return ESTIMATORS[self.estimator]

    @property
    def _stride(self) -> int | None:
        return None if self._how.spans is first else self.stride

    @property
    def needed(self) -> int:
        """Tokens that a document must have, BOS and EOS not counted."""
        return max(self.min_tokens, 1 if self._how.stream else max(self.seq_lens))

    @property
    def title(self) -> str:
        return f"{self.name}:{self.estimator}"

    def items(self) -> list[str]:
        """`ppl:<estimator>/<settings>/<length>/<document>`; those of a stream hold the number of documents."""
        return list(self._grid())

    def _grid(self) -> dict[str, tuple[int, int]]:
        settings = fingerprint(
            self.estimator,
            self.source,
            self.seed,
            self._stride,
            self.min_tokens,
            self.max_tokens,
            max(self.seq_lens),
            self.num_documents if self._how.stream else None,
        )
        return {
            f"{self.title}/{settings}/{seq_len}/{document}": (seq_len, document)
            for seq_len in self.seq_lens
            for document in range(self.num_documents)
        }

    def check(self, tokenizer: Any) -> None:
        self._chosen(tokenizer)

    def _chosen(self, tokenizer: Any) -> list[tuple[int, np.ndarray]]:
        order = f"ppl/{fingerprint(self.source, self.seed)}"
        return choose(
            self,
            order,
            source=self.source,
            tokenizer=tokenizer,
            count=self.num_documents,
            needed=self.needed,
        )

    def rows(self, lm: Model, items: Collection[str]) -> Iterator[dict[str, Any]]:
        chosen = self._chosen(lm.tokenizer)
        bos, joint = bos_prefix(lm.tokenizer), encode_fragment(lm.tokenizer, "\n\n")
        names, longest = set(items), max(self.seq_lens)
        for seq_len in self.seq_lens:
            wanted = {
                k: item for item, (n, k) in self._grid().items() if n == seq_len and item in names
            }
            if not wanted:
                continue
            found = windows(
                self._how,
                [ids[: self.max_tokens] for _, ids in chosen],
                seq_len=seq_len,
                stride=self.stride,
                bos=bos,
                joint=joint,
            )
            if not any(len(window.ids) == seq_len for window in found):
                raise ValueError(
                    f"{self.title}: the documents hold no window of {seq_len} tokens: lower the length, "
                    "or raise num_documents or max_tokens"
                )
            mine = {k: [window for window in found if window.document == k] for k in wanted}
            for k, sums in self._measure(lm, mine, seq_len):
                binned = sums.whole and seq_len == longest
                yield {
                    "eval": self.title,
                    "estimator": self.estimator,
                    "mean": self._how.mean,
                    "item": wanted[k],
                    "seq_len": seq_len,
                    "stride": self._stride,
                    "document": chosen[k][0],
                    "nll": sum(sums.nll),
                    "count": sum(sums.count),
                    "bytes": sums.num_bytes,
                    "windows": {"nll": sums.nll, "count": sums.count},
                    **({"by_position": by_position(sums.nats, sums.whole)} if binned else {}),
                }

    def _measure(
        self, lm: Model, documents: dict[int, list[Window]], seq_len: int
    ) -> Iterator[tuple[int, Sums]]:
        """The sums of every document as soon as its windows are done; windows of equal length go together."""
        sums = {
            k: Sums([0.0] * len(mine), [w.scored for w in mine], np.zeros(seq_len - 1))
            for k, mine in documents.items()
        }
        missing = {k: len(mine) for k, mine in documents.items()}
        yield from ((k, sums[k]) for k in documents if not missing[k])
        # The short ones, at most one of a text, go first: then one document after the other is done.
        todo = [(len(w.ids), k, i, w) for k, mine in documents.items() for i, w in enumerate(mine)]
        for _, same in itertools.groupby(sorted(todo, key=lambda x: x[0]), lambda x: x[0]):
            for batch in batches(list(same), max(1, self.batch_tokens // seq_len)):
                losses = np.asarray(
                    lm.loss(np.stack([window.ids for *_, window in batch])), np.float64
                )
                for (_, k, i, window), nats in zip(batch, losses, strict=True):
                    sums[k].add(i, window, nats, lm.tokenizer)
                    missing[k] -= 1
                    if not missing[k]:
                        yield k, sums[k]
