"""How the time of an evaluation is spent: in forward passes, on padding in them, and elsewhere."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ctxext.evals.wrapped import WrappedModel


@dataclasses.dataclass
class TimedModel(WrappedModel):
    """A model that measures its calls to `loss` and `continuations`, which are those of `model`."""

    on_call: Callable[[], None] = lambda: None
    """Is called when a call has returned."""
    seconds: float = 0.0
    """Time spent in the calls."""
    tokens: int = 0
    """Tokens that were read."""
    padded_tokens: int = 0
    """Tokens that were read, with their padding."""

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
        result = call()  # returns numpy arrays, so that nothing is still running
        self.seconds += time.perf_counter() - started
        self.tokens += int(np.sum(lengths))
        self.padded_tokens += int(np.prod(self._padded(lengths)))
        self.on_call()
        return result

    def shares(self, wall_seconds: float) -> tuple[float, float]:
        """(outside, padding): shares of the time outside forward passes, and inside on padding.

        The latter goes by the number of tokens.
        """
        inside = min(1.0, self.seconds / wall_seconds) if wall_seconds else 1.0
        useful = self.tokens / self.padded_tokens if self.padded_tokens else 1.0
        return 1 - inside, inside * (1 - useful)
