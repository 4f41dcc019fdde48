"""How the time of an evaluation is spent: in the model's forward passes, on padding in them, and outside of them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ctxext.evals.base import Model


@dataclasses.dataclass
class Timed:
    """A model that keeps count; `loss` and `continuations` are those of `model`.

    seconds: spent in its calls; tokens, padded: read by it, and what they were padded to.
    """

    model: Model
    seconds: float = 0.0
    tokens: int = 0
    padded: int = 0

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def config(self) -> Any:
        return self.model.config

    def loss(self, tokens: Any) -> Any:
        return self._call([len(row) - 1 for row in tokens], lambda: self.model.loss(tokens))

    def continuations(
        self,
        prompts: Any,
        prefixes: Sequence[Sequence[Any]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> tuple[Any, Any]:
        return self._call(
            [len(prompt) for prompt in prompts],
            lambda: self.model.continuations(
                prompts, prefixes, max_new_tokens=max_new_tokens, stop=stop
            ),
        )

    def _call(self, lengths: Sequence[int], call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()  # comes back as numpy, so that nothing is still under way
        self.seconds += time.perf_counter() - started
        self.tokens += int(np.sum(lengths))
        shape = getattr(self.model, "padded", None)
        self.padded += int(np.prod(shape(lengths))) if shape else int(np.sum(lengths))
        return result

    def shares(self, wall: float) -> tuple[float, float]:
        """(outside, padding): parts of `wall` seconds outside forward passes, and inside on padding by token count."""
        inside = min(1.0, self.seconds / wall) if wall else 1.0
        return 1 - inside, inside * (1 - self.tokens / self.padded) if self.padded else 0.0
