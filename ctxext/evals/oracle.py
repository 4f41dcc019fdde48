"""Models whose right score is known, to test evaluations with. They only read the prompt's ids."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ctxext.attention import Causal
from ctxext.model.config import merge_ids
from ctxext.rope import Unscaled
from ctxext.tasks import Example
from ctxext.tasks.base import encode_fragment

FORESEEN = 0.01
"""Nats that an oracle pays for a token that it foresaw."""
SURPRISE = 10.0
"""Nats for any other token."""


@dataclass(frozen=True)
class OracleConfig:
    """The window that an oracle claims to have."""

    max_position_embeddings: int = 256


@dataclass(frozen=True)
class Oracle(abc.ABC):
    """Foresees which token comes next, or nothing; losses and text follow from that."""

    scaling: ClassVar[Any] = Unscaled()
    base_scaling: ClassVar[Any] = Unscaled()
    semantics: ClassVar[str] = "incremental"
    attention: ClassVar[Any] = Causal()

    tokenizer: Any

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The id that ends a text, if the tokenizer has one."""
        return merge_ids(self.tokenizer.eos_id)

    @abc.abstractmethod
    def foresee(self, prefix: np.ndarray) -> int | None:
        """The id after these, or None."""

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
        """Tokens int32 and nats float32, both [B, K, max_new_tokens].

        A token is 0 where it foresees none.
        prefixes: for each prompt, K lists of ids that its continuations are forced to begin with.
        """
        out = [
            [self._continue(np.asarray(prompt), ids, max_new_tokens, stop) for ids in forced]
            for prompt, forced in zip(prompts, prefixes, strict=True)
        ]
        tokens, nll = np.moveaxis(np.asarray(out), 2, 0)
        return tokens.astype(np.int32), nll.astype(np.float32)

    def _continue(
        self, prompt: np.ndarray, forced: Any, steps: int, stop: Sequence[int]
    ) -> tuple[list, list]:
        """(tokens, nats) of one continuation."""
        ids = prompt
        nll = []
        ended = False
        for step in range(steps):
            next_id = ids[-1] if ended else self.foresee(ids)
            is_forced = step < len(forced)
            token = forced[step] if is_forced else next_id or 0
            if ended:
                nll.append(0.0)
            else:
                nll.append(FORESEEN if token == next_id else SURPRISE)
                ended = not is_forced and token in stop
            ids = np.append(ids, token)
        return ids[len(prompt) :].tolist(), nll


@dataclass(frozen=True)
class WindowReader(Oracle):
    """Copies what followed an earlier line that begins like the last line.

    It sees only the last `window` tokens (0: nothing, None: everything), so that it writes a whole
    answer exactly if `distance + len(answer) - 1 <= window`.
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
    """An oracle that sees everything: 100 % at any length and depth."""
    return WindowReader(tokenizer, None, config)


@dataclass(frozen=True)
class AnswerKey(Oracle):
    """Knows the answer to every question of an evaluation whose needles are all near enough.

    A needle is near if it is within the last `window` tokens (None: always) before the end of the
    answer. `manner` changes the ids that are written, to break the format of right answers.
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
        sizes = {len(key) // 4 for key in self.known}
        for size in sorted((size for size in sizes if size <= len(prefix)), reverse=True):
            example = self.known.get(np.asarray(prefix[:size], np.int32).tobytes())
            if example is not None:
                return self._next(example, len(prefix) - size)
        return None

    def _next(self, example: Example, written: int) -> int | None:
        """The id after the first `written` ids of the answer, a line."""
        newline = encode_fragment(self.tokenizer, "\n")[-1:]
        answer = [*self.manner(example.answer.tolist()), *newline]
        if written >= len(answer):
            return None
        if self.window is not None:
            if example.meta["distance"] + len(example.answer) - 1 > self.window:
                return None
        return answer[written]


@dataclass(frozen=True)
class EchoPrompt(Oracle):
    """Repeats its prompt: an evaluation that takes text of the prompt for an answer rewards it."""

    config: OracleConfig = OracleConfig()

    def foresee(self, prefix: np.ndarray) -> int | None:
        return None

    def _continue(
        self, prompt: np.ndarray, forced: Any, steps: int, stop: Sequence[int]
    ) -> tuple[list, list]:
        seen = np.concatenate([prompt, forced]).astype(int)
        missing = max(0, steps - len(forced))
        echo = np.tile(seen, -(-steps // len(seen)))
        written = [*forced, *(echo[-missing:] if missing else [])]
        return written[:steps], [SURPRISE] * steps


@dataclass(frozen=True)
class ContextCurve(Oracle):
    """A model whose loss depends only on the number of tokens it has seen: `curve(seen)` nats."""

    curve: Callable[[np.ndarray], np.ndarray]
    config: OracleConfig = OracleConfig()

    def foresee(self, prefix: np.ndarray) -> int | None:
        return None

    def loss(self, tokens: Any) -> np.ndarray:
        """Float32 [B, T-1]; entry t is the loss after t + 1 tokens."""
        B, T = np.shape(tokens)
        return np.broadcast_to(self.curve(np.arange(1, T)), (B, T - 1)).astype(np.float32)
