"""AdamW with warm-up, a schedule and clipping: what the context-extension papers train with."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax


def _decayed(params: Any) -> Any:
    """True for matrices; norms and biases are not decayed (by name: stacked layers make them 2-D)."""

    def matrix(path: tuple, _: Any) -> bool:
        return path[-1].key in ("kernel", "embedding")

    return jax.tree_util.tree_map_with_path(matrix, params)


@dataclass(frozen=True)
class Optim:
    """AdamW, arXiv:1711.05101: clip the global gradient norm, then decoupled weight decay, linear warm-up from 0.

    learning_rate: at its peak; schedule: what follows the warm-up; final_fraction: learning rate of the last step
    as a fraction of the peak (not for "constant"). Raises ValueError for values that cannot train.
    """

    learning_rate: float
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"optim.schedule {self.schedule!r} is unknown: choose constant, cosine or linear")
        for name in ("learning_rate", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} must be positive, got {getattr(self, name)}")
        for name in ("b1", "b2", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("optim.warmup_steps and optim.weight_decay must not be negative")

    def learning_rates(self, steps: int) -> optax.Schedule:
        """step (from 0) -> learning rate; step 0 of a warm-up is already above 0, so that no step is wasted."""
        after = max(steps - 1 - self.warmup_steps, 1)
        body = {
            "constant": lambda: optax.constant_schedule(self.learning_rate),
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, after, self.final_fraction),
            "linear": lambda: optax.linear_schedule(
                self.learning_rate, self.learning_rate * self.final_fraction, after
            ),
        }[self.schedule]()
        if not self.warmup_steps:
            return body
        first = self.learning_rate / (self.warmup_steps + 1)
        warmup = optax.linear_schedule(first, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, body], [self.warmup_steps])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation for a run of `steps` steps; use with `apply_updates`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(
                self.learning_rates(steps),
                b1=self.b1,
                b2=self.b2,
                eps=self.eps,
                weight_decay=self.weight_decay,
                mask=_decayed,
            ),
        )


apply_updates = optax.apply_updates
global_norm = optax.tree.norm

Transformation = optax.GradientTransformation
