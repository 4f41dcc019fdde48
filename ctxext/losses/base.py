"""The seam of losses: the objective of a training step.

A step calls the loss once per microbatch, under differentiation, and adds up what it returns. A
loss is a frozen dataclass, a field of the experiment; it runs the model with `model.loss.Forward`.
"""

import abc
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from jax import Array

from ctxext.model.loss import Forward
from ctxext.rope_by_length import SequenceRotation

RotationAt = Callable[[int], SequenceRotation]
"""The frequencies of a run for a context of so many positions."""
BATCH = "batch"
"""The name of the batch's frequencies among those of a step."""
Sums = dict[str, Array]
"""Sums over the tokens of a microbatch. "weight" divides all others and the loss; each other one
is a metric of that name."""


class Loss(abc.ABC):
    """The objective of a training step. Subclasses are frozen dataclasses and final."""

    type_tag: ClassVar[str] = "loss/"
    paper: ClassVar[str] = ""
    output_projections: ClassVar[int] = 1
    """How often the logits of a row are computed from its hidden states."""

    @abc.abstractmethod
    def __call__(
        self,
        forward: Forward,
        batch: Mapping[str, Array],
        rotations: Mapping[str, SequenceRotation],
    ) -> tuple[Array, Sums]:
        """(the sum to minimise, sums of the microbatch), of which "weight" is one.

        batch: the fields of `data.Batch`, [B, T]. rotations: those of `rotations`, by name. The
        loss of a step is the sum over its microbatches divided by the sum of their weights.
        """

    def check(self, seq_len: int) -> None:  # noqa: B027
        """Raise ValueError if rows of `seq_len` tokens cannot have this loss."""

    def rotations(
        self, positions: np.ndarray, rotation_at: RotationAt
    ) -> dict[str, SequenceRotation]:
        """The frequencies that the loss needs besides the batch's, by name; asked at every step.

        positions: int32 [rows of the step, T], on the host.
        """
        return {}

    def forward_passes(self, seq_len: int) -> dict[int, int]:
        """{tokens: how many} of the forward passes per row that carry no gradient.

        They come on top of the one that does, and `ctxext plan` counts their operations.
        """
        return {}


def step_rotations(
    loss: Loss, positions: np.ndarray, rotation_at: RotationAt
) -> dict[str, SequenceRotation]:
    """The frequencies of a step by name: the batch's, for a context that reaches to its largest
    position, and those that the loss asks for.
    """
    of_batch = rotation_at(int(np.max(positions)) + 1)
    return {BATCH: of_batch, **loss.rotations(positions, rotation_at)}
