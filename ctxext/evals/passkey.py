"""Retrieval over a grid of lengths and depths: what the model writes, and how likely it finds the right answer."""

import dataclasses
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from ctxext import tasks
from ctxext.data.sources import Stdlib, TextSource
from ctxext.evals.base import Eval, Model, batches, documents, fingerprint, item_rng

Condition = Literal["needle", "no-needle", "needle-only"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


@dataclass(frozen=True)
class Passkey(Eval):
    """`n` questions for each of `seq_lens` (tokens, answer included) x `depths` (0..1), a fresh haystack for each.

    A prediction is right when it begins with exactly the answer's ids (greedy decoding). Beside it the row holds the
    log-probability of each answer token after the true ones before it. `task` may be any retrieval task; about
    `batch_tokens` tokens go through the model together.
    `condition`, for controls on the very same questions: "no-needle" has haystack text where the answer was, so that
    being right is guessing; "needle-only" has no haystack, so that being wrong is not a matter of length.
    Raises ValueError if a question cannot fit.
    """

    name: ClassVar[str] = "passkey"
    seq_lens: tuple[int, ...]
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    n: int = 10
    task: tasks.Task = tasks.Passkey()
    source: TextSource = Stdlib("heldout")
    seed: int = 0
    condition: Condition = "needle"
    batch_tokens: int = 16_384

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition {self.condition!r} is not known; choose one of {', '.join(CONDITIONS)}")

    def items(self) -> list[str]:
        """`passkey/<settings>/<length>/<depth>/<i>`, with the condition after the settings if it is a control."""
        return list(self._grid())

    def _grid(self) -> dict[str, tuple[int, float, str]]:
        """Item -> (length, depth, the ordinary item whose question it asks)."""
        settings = fingerprint(type(self.task).__name__, self.task, self.source, self.seed)
        named = settings if self.condition == "needle" else f"{settings}-{self.condition}"
        return {
            f"{self.task.name}/{named}/{cell}": (seq_len, depth, f"{self.task.name}/{settings}/{cell}")
            for seq_len in self.seq_lens
            for depth in self.depths
            for cell in (f"{seq_len}/{float(depth)}/{i}" for i in range(self.n))
        }

    def rows(self, lm: Model, items: Collection[str]) -> Iterator[dict[str, Any]]:
        haystack = documents(self.source, lm.tokenizer)
        names = set(items)
        wanted = [(item, *cell) for item, cell in self._grid().items() if item in names]
        for seq_len in self.seq_lens:
            for batch in batches(
                [entry for entry in wanted if entry[1] == seq_len], max(1, self.batch_tokens // seq_len)
            ):
                yield from self._batch(lm, haystack, batch)

    def _batch(
        self, lm: Model, haystack: Sequence[np.ndarray], batch: Sequence[tuple[str, int, float, str]]
    ) -> Iterator[dict[str, Any]]:
        examples = [self._example(lm, haystack, *entry[1:]) for entry in batch]
        rows = [np.concatenate([example.prompt, example.answer]) for example in examples]
        longest = max(map(len, rows))  # without a haystack they differ; what stands behind the answer changes nothing
        nats = np.asarray(lm.loss(np.stack([np.pad(row, (0, longest - len(row))) for row in rows])), np.float64)
        written = lm.generate([e.prompt for e in examples], max_new_tokens=max(len(e.answer) for e in examples))
        for (item, seq_len, depth, _), example, losses, ids in zip(batch, examples, nats, written, strict=True):
            size = len(example.answer)
            answer_nats = losses[len(example.prompt) - 1 :][:size]
            yield {
                "eval": self.name,
                "item": item,
                "task": {"name": self.task.name, **dataclasses.asdict(self.task)},
                "condition": self.condition,
                "seq_len": seq_len,
                "depth": depth,
                "depth_achieved": example.depth,
                "tokens": len(example.prompt) + size,
                "prompt_sha256": hashlib.sha256(example.prompt.astype("<i4").tobytes()).hexdigest(),
                "gold": example.answer.tolist(),
                "prediction": np.asarray(ids).tolist(),
                "text": lm.tokenizer.decode(np.asarray(ids).tolist()),
                "correct": np.asarray(ids)[:size].tolist() == example.answer.tolist(),
                "answer_logprobs": (-answer_nats).tolist(),
                "answer_nll": float(answer_nats.mean()),
                "answer_probability": float(np.exp(-answer_nats.sum())),
                **example.meta,
            }

    def _example(
        self, lm: Model, haystack: Sequence[np.ndarray], seq_len: int, depth: float, question: str
    ) -> tasks.Example:
        size = None if self.condition == "needle-only" else seq_len
        example = self.task.example(item_rng(question), lm.tokenizer, size, depth=depth, haystack=haystack)
        if self.condition == "no-needle":
            return tasks.without_needle(example, item_rng(f"{question}/{self.condition}"), haystack)
        return example
