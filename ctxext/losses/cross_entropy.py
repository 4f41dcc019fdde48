"""The loss of language models."""

import dataclasses
from collections.abc import Mapping

from jax import Array

from ctxext.losses.base import Loss, Sums
from ctxext.model.loss import Forward
from ctxext.rope_by_length import SequenceRotation


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Loss):
    """The mean of -log p(next token) over the tokens of a step, weighted as the data says."""

    def __call__(
        self,
        forward: Forward,
        batch: Mapping[str, Array],
        rotations: Mapping[str, SequenceRotation],
    ) -> tuple[Array, Sums]:
        hidden = forward.hidden(batch)
        nll = forward.weighted_loss(hidden, batch["targets"], batch["weights"])
        return nll, {"weight": batch["weights"].sum()}
