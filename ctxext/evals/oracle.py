"""Models whose right score is known, to test evaluations with: they read the prompt's ids and compute nothing else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctxext.tasks.base import encode_piece

SURPRISE = 10.0
"""Nats an oracle pays for a token it did not foresee."""


@dataclass(frozen=True)
class OracleConfig:
    """The window that an oracle claims to have."""

    max_position_embeddings: int = 256


@dataclass(frozen=True)
class WindowReader:
    """Copies what followed an earlier line that begins like the last line; sees the last `window` tokens only.

    So it writes a whole answer exactly if `distance + len(answer) - 1 <= window` (0 sees nothing, None everything).
    """

    tokenizer: Any
    window: int | None
    config: OracleConfig = OracleConfig()

    def _next(self, prefix: np.ndarray, newline: int) -> int | None:
        view = prefix[max(0, len(prefix) - self.window) :] if self.window is not None else prefix
        starts = np.flatnonzero(view == newline)
        if not len(starts):
            return None
        line = view[starts[-1] :]
        for start in starts[:-1][::-1]:
            if np.array_equal(view[start : start + len(line)], line):
                return int(view[start + len(line)])
        return None

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1]: 0.01 nats for a token it foresaw, SURPRISE for any other."""
        newline = encode_piece(self.tokenizer, "\n")[-1]
        rows = np.asarray(tokens)
        foreseen = [[self._next(row[: t + 1], newline) == row[t + 1] for t in range(len(row) - 1)] for row in rows]
        return np.where(foreseen, 0.01, SURPRISE).astype(np.float32)

    def generate(self, tokens: Any, *, max_new_tokens: int) -> np.ndarray:
        """int32 [B, max_new_tokens]; 0 where it has nothing to copy."""
        newline = encode_piece(self.tokenizer, "\n")[-1]
        written = []
        for prompt in tokens:
            row = np.asarray(prompt)
            for _ in range(max_new_tokens):
                row = np.append(row, self._next(row, newline) or 0)
            written.append(row[len(prompt) :])
        return np.asarray(written, np.int32)


def PerfectReader(tokenizer: Any, config: OracleConfig = OracleConfig()) -> WindowReader:
    """Sees everything: 100 % at any length and depth."""
    return WindowReader(tokenizer, None, config)


@dataclass(frozen=True)
class EchoPrompt:
    """Repeats the end of its prompt; whoever scores text of the prompt as an answer gives it points."""

    tokenizer: Any
    config: OracleConfig = OracleConfig()

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1], SURPRISE everywhere."""
        return np.full((len(tokens), len(tokens[0]) - 1), SURPRISE, np.float32)

    def generate(self, tokens: Any, *, max_new_tokens: int) -> np.ndarray:
        """int32 [B, max_new_tokens]: the last tokens of each prompt."""
        return np.asarray([np.asarray(prompt)[-max_new_tokens:] for prompt in tokens], np.int32)


@dataclass(frozen=True)
class ContextCurve:
    """A model whose loss depends on nothing but the number of tokens it has seen: `curve(seen)` nats."""

    tokenizer: Any
    curve: Callable[[np.ndarray], np.ndarray]
    config: OracleConfig = OracleConfig()

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1]; entry t is the loss after t + 1 tokens."""
        B, T = np.shape(tokens)
        return np.broadcast_to(self.curve(np.arange(1, T)), (B, T - 1)).astype(np.float32)

    def generate(self, tokens: Any, *, max_new_tokens: int) -> np.ndarray:
        """Zeros."""
        return np.zeros((len(tokens), max_new_tokens), np.int32)
