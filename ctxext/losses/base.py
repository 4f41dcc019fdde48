"""The seam of losses: the objective of a training step.

A step calls the loss once per microbatch, under differentiation, and adds up what it returns. A
loss is a frozen dataclass, a field of the experiment; it runs the model with `model.loss.Forward`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from jax import Array

from ctxext.model.loss import Forward
from ctxext.rope_by_length import SequenceRotation

RotationAt = Callable[[int], SequenceRotation]
"""Maps a number of positions to the frequencies of a run for a context of that length."""
Sums = dict[str, Array]
"""Sums over the tokens of a microbatch. "weight" divides all others and the loss; each other one
is a metric of that name."""
BATCH = "batch"
"""The name of the batch's frequencies among those of a step."""
TEACHER = "teacher"
"""The name of the base's parameters, for a loss that `has_teacher`, among those that are frozen."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of a run, in tokens."""

    row: int
    """T, of a row of training."""
    window: int
    """L, of pre-training."""
    target: int
    """L', the longest context that is trained."""

    @property
    def short(self) -> int:
        """A text that the base was trained for: a row, up to the window."""
        return min(self.row, self.window)


class Loss(abc.ABC):
    """The objective of a training step. Subclasses are frozen dataclasses and final."""

    type_tag: ClassVar[str] = "loss/"
    paper: ClassVar[str] = ""
    output_projections: ClassVar[int] = 1
    """How often the logits of a row are computed from its hidden states."""
    has_teacher: ClassVar[bool] = False
    """It runs the frozen base as well, `Forward.of_teacher`. The step then holds the base's values
    of what is trained, in the compute dtype; under adapters alone there are none."""

    @abc.abstractmethod
    def __call__(
        self,
        forward: Forward,
        batch: Mapping[str, Array],
        rotations: Mapping[str, SequenceRotation],
    ) -> tuple[Array, Sums]:
        """(the sum to minimise, sums of the microbatch), of which "weight" is one.

        batch: the fields of `data.Batch`, [B, T], and `row_inputs`. rotations: those of `rotations`
        and `fixed_rotations`, by name. The loss of a step is the sum over its microbatches divided
        by the sum of their weights.
        """

    def check(self, lengths: Lengths, num_layers: int) -> None:  # noqa: B027
        """Raise ValueError if it cannot train a model of `num_layers` layers at these lengths."""

    def rotations(
        self, positions: np.ndarray, rotation_at: RotationAt
    ) -> dict[str, SequenceRotation]:
        """The frequencies that the loss needs besides the batch's, by name; asked at every step.

        positions: int32 [rows of the step, T], on the host.
        """
        return {}

    def fixed_rotations(
        self, lengths: Lengths, rotation_at: RotationAt, base_rotation_at: RotationAt
    ) -> dict[str, SequenceRotation]:
        """Further frequencies by name that are the same at every step.

        rotation_at: for a length, by the scaling of the run. base_rotation_at: by that of the base.
        """
        return {}

    def row_inputs(self, rng: np.random.Generator, lengths: Lengths) -> dict[str, np.ndarray]:
        """Further arrays of one row, by name, which depend on `rng` alone."""
        return {}

    def forward_passes(self, lengths: Lengths) -> dict[int, int]:
        """Forward passes per row without a gradient: {tokens of a pass: number of passes}.

        They come on top of the one with a gradient, and `ctxext plan` counts their operations.
        """
        return {}

    def short_passes(self, lengths: Lengths) -> dict[int, int]:
        """Further passes per row with a gradient and without logits: {tokens: number}."""
        return {}

    def held_states(self, num_layers: int) -> int:
        """How many hidden states of each token of those passes are held until the backward pass."""
        return 0


def step_rotations(
    loss: Loss,
    positions: np.ndarray,
    rotation_at: RotationAt,
    *,
    lengths: Lengths,
    base_rotation_at: RotationAt,
) -> dict[str, SequenceRotation]:
    """The frequencies of a step by name: `BATCH`, and those that the loss asks for.

    Those of the batch are for a context that reaches to its largest position. base_rotation_at:
    the frequencies of the base before any scaling of the run.
    """
    return {
        BATCH: rotation_at(int(np.max(positions)) + 1),
        **loss.rotations(positions, rotation_at),
        **loss.fixed_rotations(lengths, rotation_at, base_rotation_at),
    }
