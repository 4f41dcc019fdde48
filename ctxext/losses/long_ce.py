"""LongCE: tokens count by how much a long context helps to predict them (arXiv 2410.23771)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from ctxext.attention.ring import length_multiple
from ctxext.losses.base import Lengths, Loss, RotationAt, Sums
from ctxext.model.loss import Forward
from ctxext.rope_by_length import SequenceRotation

SHORT = "short"
"""The name of the frequencies of short contexts."""


@dataclasses.dataclass(frozen=True)
class LongCE(Loss):
    """The mean of w (-log p), w = min(p / p_short, clip), a constant for the gradient (2410.23771).

    p is a token's probability after its whole context, p_short after the last K .. K + I - 1 tokens
    of it: for s = I, 2 I, ... the window that begins with token s scores its tokens K .. K + I - 1,
    as in the released code (the first window, s = 0, is the whole context, so that w = 1, as it is
    for the first K tokens). Here also w = 1, exactly, where a packed document begins within the
    window: its tokens have no longer context. K is `short_context`, I is `stride`. The weights are
    not normalised, so that their mean, the metric `token_weight`, scales the learning rate; the
    metric `cross_entropy` is the mean of -log p.

    Cost: one more forward pass of (T - K) / I windows of K + I tokens each, about (K + I) / I times
    the tokens of a row, and no memory to speak of; `ctxext plan` counts it. Positions in a window
    begin at 0. Adapters drop the same inputs in both passes. Raises ValueError for rows shorter
    than K + I.
    """

    paper: ClassVar[str] = "2410.23771"
    output_projections: ClassVar[int] = 2
    short_context: int = 4096
    """K, the least tokens of a short context."""
    stride: int = 1024
    """I, the tokens that one window scores."""
    clip: float = 5.0
    """The largest weight."""

    def __post_init__(self) -> None:
        for field in ("short_context", "stride"):
            if getattr(self, field) < 1:
                raise ValueError(f"loss.{field} must be at least 1, got {getattr(self, field)}")
        if not 1 <= self.clip < math.inf:
            raise ValueError(f"loss.clip must be finite and at least 1, got {self.clip}")

    def check(self, lengths: Lengths, num_layers: int) -> None:
        seq_len = lengths.row
        if seq_len < self.short_context + self.stride:
            raise ValueError(
                f"LongCE compares contexts of rows of {seq_len} tokens with short ones of "
                f"{self.short_context} to {self.short_context + self.stride - 1}: lower "
                "loss.short_context and loss.stride, whose sum a row must reach, or raise "
                "train.seq_len"
            )

    def forward_passes(self, lengths: Lengths) -> dict[int, int]:
        return {self.short_context + self.stride: len(self._starts(lengths.row))}

    def rotations(
        self, positions: np.ndarray, rotation_at: RotationAt
    ) -> dict[str, SequenceRotation]:
        """Those of a context that reaches as far as the positions of the longest window."""
        last = positions.shape[1] - 1
        starts = self._starts(positions.shape[1])
        ends = np.minimum(starts + self.short_context + self.stride - 1, last)
        reach = int((positions[:, ends] - positions[:, starts]).max()) + 1
        return {SHORT: rotation_at(reach)}

    def __call__(
        self,
        forward: Forward,
        batch: Mapping[str, Array],
        rotations: Mapping[str, SequenceRotation],
    ) -> tuple[Array, Sums]:
        hidden = forward.hidden(batch)
        constant = forward.without_gradient()
        full = constant.token_losses(jax.lax.stop_gradient(hidden), batch["targets"])
        short = self._short_losses(constant, batch, rotations[SHORT])
        is_shorter = self._is_shorter(batch["segment_ids"])
        weights = batch["weights"] * token_weights(full, short, is_shorter, clip=self.clip)
        nll = forward.weighted_loss(hidden, batch["targets"], weights)
        return nll, {
            "weight": batch["weights"].sum(),
            "cross_entropy": (batch["weights"] * full).sum(),
            "token_weight": weights.sum(),
        }

    def _starts(self, seq_len: int) -> np.ndarray:
        """The first tokens of the windows that are computed, of a text of `seq_len` + 1 tokens."""
        return np.arange(self.stride, seq_len + 1 - self.short_context, self.stride)

    def _is_shorter(self, segment_ids: Int[Array, "b t"]) -> Array:
        """Whether the short context of each loss, bool [B, T], lacks tokens of its document."""
        index = jnp.arange(segment_ids.shape[1])
        begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0
        first = jax.lax.cummax(jnp.where(begins, index[None], 0), axis=1)
        # The loss with index i is that of token i + 1 of the text.
        window = jnp.maximum(index + 1 - self.short_context, 0) // self.stride
        return first < window[None] * self.stride

    def _short_losses(
        self,
        forward: Forward,
        batch: Mapping[str, Array],
        rotation: SequenceRotation,
    ) -> Array:
        """The loss of each token after its short context, float32 [B, T]; 0 without one."""
        B, T = batch["tokens"].shape
        starts = self._starts(T)
        devices = forward.setup.mesh.build().shape["seq"]
        length = self.short_context + self.stride
        multiple = length_multiple(length, devices)
        length = -(-length // multiple) * multiple
        padding = int(starts[-1]) + length - T
        names = ("tokens", "targets", "positions", "segment_ids")
        padded = {name: jnp.pad(batch[name], ((0, 0), (0, padding))) for name in names}
        padded["token_indices"] = jnp.arange(B * T).reshape(B, T)
        padded["token_indices"] = jnp.pad(padded["token_indices"], ((0, 0), (0, padding)))

        def score(start: Array) -> Array:
            window: dict[str, Any] = {
                name: jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)
                for name, x in padded.items()
            }
            window["positions"] = window["positions"] - window["positions"][:, :1]
            token_indices = window.pop("token_indices")
            hidden = forward.hidden(window, rotation=rotation, token_indices=token_indices)
            losses = forward.token_losses(hidden, window["targets"])
            return losses[:, self.short_context - 1 :][:, : self.stride]

        scored = jax.lax.map(score, jnp.asarray(starts))
        scored = jnp.moveaxis(scored, 0, 1).reshape(B, -1)
        before = int(starts[0]) + self.short_context - 1
        return jnp.pad(scored, ((0, 0), (before, 0)))[:, :T]


def token_weights(
    full: Float[Array, "b t"],
    short: Float[Array, "b t"],
    is_shorter: Array,
    *,
    clip: float,
) -> Float[Array, "b t"]:
    """min(exp(short - full), clip) of two losses of the same tokens; 1 where not `is_shorter`."""
    return jnp.where(is_shorter, jnp.minimum(jnp.exp(short - full), clip), 1.0)
