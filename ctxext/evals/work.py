"""The work of an evaluation before it is done: what a model would be asked to read and write."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ctxext.evals.base import Eval
from ctxext.evals.record import EvaluatedModel
from ctxext.evals.wrapped import WrappedModel
from ctxext.model.generation import forced
from ctxext.model.shared_beginning import shared_beginning


class Call(NamedTuple):
    """One call of a model: several rows, which it reads at once."""

    lengths: tuple[int, ...]
    """Tokens of each row, without padding."""
    padded: tuple[int, int]
    """Rows and tokens per row, as the model computes them."""
    continuations: int = 0
    """Continuations of each row; 0: the call asks for the loss of the rows' tokens."""
    new_tokens: int = 0
    """Tokens of each continuation, at most."""
    beginnings: int = 0
    """Different beginnings of the continuations of a row, each of which is written once; 0: the
    continuations share none."""
    shared_tokens: int = 0
    """Tokens of each of these."""

    def steps(self) -> list[tuple[int, int]]:
        """(steps of decoding, tokens that each of them writes)."""
        rows = self.padded[0]
        own = self.new_tokens - self.shared_tokens
        return [(self.shared_tokens, rows * self.beginnings), (own, rows * self.continuations)]


@dataclasses.dataclass
class CountingModel(WrappedModel):
    """A model that notes its calls and computes nothing: every token has a loss of 0."""

    calls: list[Call] = dataclasses.field(default_factory=list)

    def loss(self, tokens: Any) -> np.ndarray:
        rows = np.asarray(tokens)
        lengths = [rows.shape[1] - 1] * len(rows)
        self.calls.append(Call(tuple(lengths), self._padded(lengths)))
        return np.zeros((len(rows), rows.shape[1] - 1), np.float32)

    def continuations(
        self,
        prompts: Any,
        prefixes: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths = [len(prompt) for prompt in prompts]
        count = len(prefixes[0])
        shared = shared_beginning(forced(prefixes, max_new_tokens))
        call = Call(tuple(lengths), self._padded(lengths), count, max_new_tokens)
        if shared is not None:
            _, beginnings, tokens = shared.tokens.shape
            call = call._replace(beginnings=beginnings, shared_tokens=tokens)
        self.calls.append(call)
        shape = (len(lengths), count, max_new_tokens)
        return np.zeros(shape, np.int32), np.zeros(shape, np.float32)


def calls_of(
    evaluation: Eval, model: Any, items: Collection[str], described: EvaluatedModel
) -> list[Call]:
    """The calls that evaluating these items would make. Their prompts are built, and not read.

    What another model would read, such as one that finds key tokens, counts as read by this one.
    """
    counting = CountingModel(model)
    if items:
        for _ in evaluation.read_only_by(counting).records(counting, items, described):
            pass
    return counting.calls


def readings(calls: Iterable[Call]) -> Counter[int]:
    """How many texts are read, by their padded length in tokens."""
    counts: Counter[int] = Counter()
    for call in calls:
        counts[call.padded[1]] += len(call.lengths)
    return counts


def num_tokens(calls: Iterable[Call]) -> int:
    """Tokens that are read, without padding."""
    return sum(sum(call.lengths) for call in calls)
