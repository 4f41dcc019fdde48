"""AdamW with warm-up, a schedule and clipping: what the context-extension papers train with."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import optax


def _decayed(params: Any) -> Any:
    """True for matrices; norms and biases are not decayed (by name: stacked layers make them 2-D)."""

    def matrix(path: tuple, _: Any) -> bool:
        return path[-1].key in ("kernel", "embedding", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(matrix, params)


def _multiplied(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Updates times the number of the first pattern that their path holds, which is another learning rate."""

    def name(path: tuple) -> str:
        return jax.tree_util.keystr(path, simple=True, separator=".")

    def init(params: Any) -> optax.EmptyState:
        names = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in rates:
            if not any(re.search(pattern, x) for x in names):
                raise ValueError(
                    f"optim.rates: {pattern!r} matches nothing that is trained, such as {names[0]}"
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scaled(path: tuple, leaf: jax.Array) -> jax.Array:
            return next(
                (factor * leaf for pattern, factor in rates if re.search(pattern, name(path))), leaf
            )

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)


@dataclass(frozen=True)
class Optim:
    """AdamW, arXiv:1711.05101: clip the global gradient norm, then decoupled weight decay, linear warm-up from 0.

    learning_rate: at its peak; schedule: what follows the warm-up; final_fraction: learning rate of the last step
    as a fraction of the peak (not for "constant"); rates: (regular expression over parameter paths, multiple of the
    learning rate), the first match counts. Raises ValueError for values that cannot train.
    """

    type_tag: ClassVar[str] = "optim"
    learning_rate: float
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    rates: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(
                f"optim.schedule {self.schedule!r} is unknown: choose constant, cosine or linear"
            )
        for name in ("learning_rate", "clip_norm", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} must be positive, got {getattr(self, name)}")
        for name in ("b1", "b2", "final_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("optim.warmup_steps and optim.weight_decay must not be negative")
        for pattern, factor in self.rates:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"optim.rates: {pattern!r} is no regular expression: {error}"
                ) from None
            if not factor >= 0:
                raise ValueError(
                    f"optim.rates: the multiple for {pattern!r} must not be negative, got {factor}"
                )

    def learning_rates(self, steps: int) -> optax.Schedule:
        """step (from 0) -> learning rate; step 0 of a warm-up is already above 0, so that no step is wasted."""
        after = max(steps - 1 - self.warmup_steps, 1)
        body = {
            "constant": lambda: optax.constant_schedule(self.learning_rate),
            "cosine": lambda: optax.cosine_decay_schedule(
                self.learning_rate, after, self.final_fraction
            ),
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
            *([_multiplied(self.rates)] if self.rates else []),
        )


apply_updates = optax.apply_updates
global_norm = optax.tree.norm

Transformation = optax.GradientTransformation
