"""Models whose right score is known, to test evaluations with: they read the prompt's ids and compute nothing else."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctxext.tasks import Example
from ctxext.tasks.base import encode_fragment

FORESEEN, SURPRISE = 0.01, 10.0
"""Nats an oracle pays for a token it foresaw, and for any other."""


@dataclass(frozen=True)
class OracleConfig:
    """The window that an oracle claims to have."""

    max_position_embeddings: int = 256


@dataclass(frozen=True)
class Oracle(abc.ABC):
    """Says which token comes next, or None; all else follows from that."""

    tokenizer: Any

    @abc.abstractmethod
    def foresee(self, prefix: np.ndarray) -> int | None:
        """The next id after these."""

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1], nats."""
        rows = np.asarray(tokens)
        foreseen = [
            [self.foresee(row[: t + 1]) == row[t + 1] for t in range(len(row) - 1)] for row in rows
        ]
        return np.where(foreseen, FORESEEN, SURPRISE).astype(np.float32)

    def continuations(
        self,
        prompts: Any,
        prefixes: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 and nats float32, both [B, K, max_new_tokens]; token 0 where it foresees nothing."""
        out = [
            [self._branch(np.asarray(prompt), ids, max_new_tokens, stop) for ids in continuations]
            for prompt, continuations in zip(prompts, prefixes, strict=True)
        ]
        tokens, nats = np.moveaxis(np.asarray(out), 2, 0)
        return tokens.astype(np.int32), nats.astype(np.float32)

    def _branch(
        self, prefix: np.ndarray, prefixes: Any, steps: int, stop: Sequence[int]
    ) -> tuple[list, list]:
        start, nats, ended = len(prefix), [], False
        for step in range(steps):
            next_id = prefix[-1] if ended else self.foresee(prefix)
            token = prefixes[step] if step < len(prefixes) else next_id or 0
            nats.append(0.0 if ended else FORESEEN if token == next_id else SURPRISE)
            ended = ended or (step >= len(prefixes) and token in stop)
            prefix = np.append(prefix, token)
        return prefix[start:].tolist(), nats


@dataclass(frozen=True)
class WindowReader(Oracle):
    """Copies what followed an earlier line that begins like the last line; sees the last `window` tokens only.

    So it writes a whole answer exactly if `distance + len(answer) - 1 <= window` (0 sees nothing, None everything).
    """

    window: int | None
    config: OracleConfig = OracleConfig()

    def foresee(self, prefix: np.ndarray) -> int | None:
        newline = encode_fragment(self.tokenizer, "\n")[-1]
        view = prefix[max(0, len(prefix) - self.window) :] if self.window is not None else prefix
        starts = np.flatnonzero(view == newline)
        if not len(starts):
            return None
        line = view[starts[-1] :]
        for start in starts[:-1][::-1]:
            if np.array_equal(view[start : start + len(line)], line):
                return int(view[start + len(line)])
        return None


def PerfectReader(tokenizer: Any, config: OracleConfig = OracleConfig()) -> WindowReader:
    """Sees everything: 100 % at any length and depth."""
    return WindowReader(tokenizer, None, config)


@dataclass(frozen=True)
class AnswerKey(Oracle):
    """Knows the answers to the questions of an evaluation; gives one only if all its needles are near enough.

    A needle is near if it lies within the last `window` tokens (None: always) before the end of the answer. `manner`
    changes the ids that are written, to break the format of right answers.
    """

    known: dict[bytes, Example] = field(repr=False)
    window: int | None = None
    manner: Callable[[list[int]], list[int]] = list
    config: OracleConfig = OracleConfig()

    @classmethod
    def of(cls, evaluation: Any, tokenizer: Any, **options: Any) -> "AnswerKey":
        """The key to every question that `evaluation` asks."""
        examples = evaluation.examples(tokenizer)
        return cls(tokenizer, {e.prompt.astype(np.int32).tobytes(): e for e in examples}, **options)

    def foresee(self, prefix: np.ndarray) -> int | None:
        for size in sorted(
            {len(key) // 4 for key in self.known if len(key) // 4 <= len(prefix)}, reverse=True
        ):
            example = self.known.get(np.asarray(prefix[:size], np.int32).tobytes())
            if example is not None:
                end = encode_fragment(self.tokenizer, "\n")[-1:]  # what it knows is a line
                answer, place = [*self.manner(example.answer.tolist()), *end], len(prefix) - size
                near = (
                    self.window is None
                    or example.meta["distance"] + len(example.answer) - 1 <= self.window
                )
                return answer[place] if near and place < len(answer) else None
        return None


@dataclass(frozen=True)
class EchoPrompt(Oracle):
    """Repeats the end of its prompt; whoever scores text of the prompt as an answer gives it points."""

    config: OracleConfig = OracleConfig()

    def foresee(self, prefix: np.ndarray) -> int | None:
        return None

    def _branch(
        self, prefix: np.ndarray, prefixes: Any, steps: int, stop: Sequence[int]
    ) -> tuple[list, list]:
        said = np.concatenate([prefix, prefixes]).astype(int)
        written = [
            *prefixes,
            *np.tile(said, -(-steps // len(said)))[-(steps - len(prefixes)) or len(said) * steps :],
        ]
        return written[:steps], [SURPRISE] * steps


@dataclass(frozen=True)
class ContextCurve(Oracle):
    """A model whose loss depends on nothing but the number of tokens it has seen: `curve(seen)` nats."""

    curve: Callable[[np.ndarray], np.ndarray]
    config: OracleConfig = OracleConfig()

    def foresee(self, prefix: np.ndarray) -> int | None:
        return None

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1]; entry t is the loss after t + 1 tokens."""
        B, T = np.shape(tokens)
        return np.broadcast_to(self.curve(np.arange(1, T)), (B, T - 1)).astype(np.float32)
