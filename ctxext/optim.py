"""AdamW with warm-up, a schedule and clipping, as the context-extension papers use it."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import optax


@dataclass(frozen=True)
class Optim:
    """AdamW (arXiv 1711.05101) after clipping the global norm of the gradient.

    Raises ValueError for values that cannot train.
    """

    type_tag: ClassVar[str] = "optim"
    learning_rate: float
    """The learning rate at its peak."""
    warmup_steps: int = 0
    """Steps of linear warm-up to the peak."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """The learning rate after the warm-up."""
    final_fraction: float = 0.0
    """The last learning rate as a fraction of the peak; not for "constant"."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """The largest global norm of the gradient."""
    rates: tuple[tuple[str, float], ...] = ()
    """(regular expression over parameter paths, multiple of the learning rate); the first match
    counts."""

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
                    f"optim.rates: {pattern!r} is not a regular expression: {error}"
                ) from None
            if not factor >= 0:
                raise ValueError(
                    f"optim.rates: the multiple for {pattern!r} must not be negative, got {factor}"
                )

    def learning_rates(self, steps: int) -> optax.Schedule:
        """step (from 0) -> learning rate; that of step 0 is above 0, so that no step is wasted."""
        steps_after_warmup = max(steps - 1 - self.warmup_steps, 1)
        if self.schedule == "constant":
            after_warmup = optax.constant_schedule(self.learning_rate)
        elif self.schedule == "cosine":
            after_warmup = optax.cosine_decay_schedule(
                self.learning_rate, steps_after_warmup, self.final_fraction
            )
        else:
            last = self.learning_rate * self.final_fraction
            after_warmup = optax.linear_schedule(self.learning_rate, last, steps_after_warmup)
        if not self.warmup_steps:
            return after_warmup
        first = self.learning_rate / (self.warmup_steps + 1)
        warmup = optax.linear_schedule(first, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, after_warmup], [self.warmup_steps])

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
                mask=_is_decayed,
            ),
            *([_scale_by_path(self.rates)] if self.rates else []),
        )


def _is_decayed(params: Any) -> Any:
    """A tree of booleans, True for matrices: norms and biases are not decayed.

    Decided by name, because the stack of layers makes a matrix of every vector.
    """

    def is_matrix(path: tuple, _: Any) -> bool:
        return path[-1].key in ("kernel", "embedding", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _scale_by_path(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiply each update by the factor of the first pattern found in its path."""

    def path_name(path: tuple) -> str:
        return jax.tree_util.keystr(path, simple=True, separator=".")

    def init(params: Any) -> optax.EmptyState:
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in rates:
            if not any(re.search(pattern, name) for name in names):
                raise ValueError(
                    f"optim.rates: {pattern!r} matches nothing that is trained, such as {names[0]}"
                )
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scale(path: tuple, leaf: jax.Array) -> jax.Array:
            for pattern, factor in rates:
                if re.search(pattern, path_name(path)):
                    return factor * leaf
            return leaf

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


apply_updates = optax.apply_updates
global_norm = optax.tree.norm

Transformation = optax.GradientTransformation
