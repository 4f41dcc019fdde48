"""LongReD: a longer window whose short texts stay those of the base (arXiv 2502.07365)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ctxext.losses.base import Lengths, Loss, RotationAt, Sums
from ctxext.methods.cream import CREAM
from ctxext.model.loss import Forward
from ctxext.rope_by_length import SequenceRotation

POSITIONS = "skipped_positions"
"""The name of the skipped positions among the arrays of a microbatch."""
DEVIATION = 5.0
"""The `deviation` that the released code gives CREAM; its `mean` there is 1 + L' / L."""


@dataclasses.dataclass(frozen=True)
class LongRed(Loss):
    """Cross-entropy, and two distances to the hidden states of the base (arXiv 2502.07365).

    The sum of CE, a_1 sum_l (1 - mean cos(h_l, h'_l)) and a_2 (1 - mean cos(h_n, h'_n)), the
    distances on the first window of each row: h is the model, h' the frozen base with its own
    frequencies. In the second distance the model sees that window at the positions of a long text,
    with gaps (`CREAM`, mean 1 + L' / L, deviation 5). Layers l count from 1; the last, n, is after
    the final norm. The metrics `next_token_loss`, `short_distance` and `short_to_long_distance` are
    the three terms.

    Weights and layers are those of the released code, written for 32 layers; the default has the
    same depths in any model. That code takes other texts for each term, in 8, 6 and 2 of 16
    microbatches; with its weights that is `short_weight` 3.75 and `short_to_long_weight` 2.5 here.
    It also computes logits of short texts, which nothing uses, and gives the teacher to the
    optimiser and to checkpoints: neither is done here.

    Cost: per row, two more forward and backward passes and one forward pass of the base, of one
    window and without logits: for rows of four windows about 60 % more operations. The base takes
    its parameters in the compute dtype once more in full training, and nothing under adapters,
    where it is there already. `ctxext plan` counts both. Raises ValueError for settings that leave
    nothing to compute or name layers that no model has.
    """

    paper: ClassVar[str] = "2502.07365"
    has_teacher: ClassVar[bool] = True
    short_weight: float = 5.0
    """a_1, the weight of the distances on short texts."""
    short_to_long_weight: float = 10.0
    """a_2, the weight of the distance at skipped positions."""
    depths: tuple[float, ...] = (1 / 32, 9 / 32, 12 / 32, 14 / 32, 15 / 32, 1.0)
    """The layers of the first term, as shares of the depth, rounded to whole layers."""
    layers: tuple[int, ...] = ()
    """The same by number, from 1; empty: by `depths`."""
    skipping: Literal["cream", "uniform"] = "cream"
    """How the middle block of skipped positions is placed: by CREAM, or uniformly."""

    def __post_init__(self) -> None:
        weights = (self.short_weight, self.short_to_long_weight)
        if not min(weights) >= 0 or not 0 < max(weights) < float("inf"):
            raise ValueError(
                "loss.short_weight and loss.short_to_long_weight must be at least 0 and not both "
                f"0, got {weights[0]} and {weights[1]}; without them, use --method cross-entropy"
            )
        if self.skipping not in ("cream", "uniform"):
            raise ValueError(
                f"loss.skipping {self.skipping!r} is not known; choose cream or uniform"
            )
        if any(not 0 < depth <= 1 for depth in self.depths):
            raise ValueError(f"loss.depths are shares above 0 and up to 1, got {self.depths}")
        if any(number < 1 for number in self.layers):
            raise ValueError(f"loss.layers are numbers from 1, got {self.layers}")
        if self.short_weight and not (self.depths or self.layers):
            raise ValueError("loss.depths is empty; name depths such as 0.5 1, or loss.layers")

    def numbers(self, num_layers: int) -> tuple[int, ...]:
        """The layers of the first term in a model of this depth, ascending."""
        chosen = self.layers or [max(1, round(depth * num_layers)) for depth in self.depths]
        return tuple(sorted(set(chosen)))

    def check(self, lengths: Lengths, num_layers: int) -> None:
        deepest = max(self.numbers(num_layers), default=0)
        if deepest > num_layers:
            raise ValueError(
                f"loss.layers names layer {deepest}, but the model has {num_layers}; loss.depths "
                "fit any model"
            )
        if self.short_to_long_weight and lengths.target < 2 * lengths.short:
            raise ValueError(
                f"long-red skips positions up to the target of {lengths.target:,} tokens, which "
                f"must be at least twice the short texts of {lengths.short:,}; make train.seq_len "
                "longer, or set loss.short_to_long_weight to 0"
            )

    def forward_passes(self, lengths: Lengths) -> dict[int, int]:
        return {lengths.short: 1}

    def short_passes(self, lengths: Lengths) -> dict[int, int]:
        return {lengths.short: bool(self.short_weight) + bool(self.short_to_long_weight)}

    def held_states(self, num_layers: int) -> int:
        # While the layers run, the outputs of all of them, of the model and of the base.
        return 2 * num_layers if self.short_weight else 2

    def row_inputs(self, rng: np.random.Generator, lengths: Lengths) -> dict[str, np.ndarray]:
        if not self.short_to_long_weight:
            return {}
        skipping = CREAM(
            lengths.target,
            middle="normal" if self.skipping == "cream" else "uniform",
            mean=1 + lengths.target // lengths.short,
            deviation=DEVIATION,
        )
        return {POSITIONS: skipping.sample(rng, (1, lengths.short))[0]}

    def fixed_rotations(
        self, lengths: Lengths, rotation_at: RotationAt, base_rotation_at: RotationAt
    ) -> dict[str, SequenceRotation]:
        return {
            "base": base_rotation_at(lengths.short),
            "short": rotation_at(lengths.short),
            "skipped": rotation_at(lengths.target),
        }

    def __call__(
        self,
        forward: Forward,
        batch: Mapping[str, Array],
        rotations: Mapping[str, SequenceRotation],
    ) -> tuple[Array, Sums]:
        weights = batch["weights"]
        nll = forward.weighted_loss(forward.hidden(batch), batch["targets"], weights)
        sums = {"weight": weights.sum(), "next_token_loss": nll}
        total = nll
        short_distance, long_distance = self._distances(forward, batch, rotations)
        terms = {
            "short_distance": (self.short_weight, short_distance),
            "short_to_long_distance": (self.short_to_long_weight, long_distance),
        }
        # Each row counts by its weight, so that microbatches add up to the step of one batch.
        of_row = weights.sum(1)
        for name, (weight, distance) in terms.items():
            if distance is not None:
                sums[name] = (of_row * distance).sum()
                total = total + weight * sums[name]
        return total, sums

    def _distances(
        self,
        forward: Forward,
        batch: Mapping[str, Array],
        rotations: Mapping[str, SequenceRotation],
    ) -> tuple[Float[Array, "b"] | None, Float[Array, "b"] | None]:
        """The two terms without their weights, of every row; None for one of weight 0."""
        config = forward.setup.config
        last = config.num_hidden_layers
        B, T = batch["tokens"].shape
        short_len = min(T, config.max_position_embeddings)
        tokens = batch["tokens"][:, :short_len]
        segment_ids = batch["segment_ids"][:, :short_len]
        positions = jnp.broadcast_to(jnp.arange(short_len, dtype=jnp.int32)[None], (B, short_len))
        text = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
        is_text = forward.in_order(segment_ids > 0)

        numbers = self.numbers(last) if self.short_weight else ()
        of_teacher = (*numbers, last) if self.short_to_long_weight else numbers
        teacher = forward.of_teacher()
        targets = teacher.hidden_of_layers(text, of_teacher, rotation=rotations["base"])
        short_distance = None
        if self.short_weight:
            outputs = forward.hidden_of_layers(text, numbers, rotation=rotations["short"])
            pairs = zip(outputs, targets, strict=False)  # the last target is the other term's
            of_layers = [cosine_distance(*pair, is_text) for pair in pairs]
            short_distance = jnp.stack(of_layers).sum(0)
        long_distance = None
        if self.short_to_long_weight:
            text = {**text, "positions": batch[POSITIONS]}
            output = forward.hidden(text, rotation=rotations["skipped"])
            long_distance = cosine_distance(output, targets[-1], is_text)
        return short_distance, long_distance


def cosine_distance(
    student: Float[Array, "b t d"], teacher: Float[Array, "b t d"], is_text: Bool[Array, "b t"]
) -> Float[Array, "b"]:
    """1 - the mean of cos(student, teacher) over the text of each row, float32; 0 without text."""
    student = student.astype(jnp.float32)
    teacher = teacher.astype(jnp.float32)
    product = (student * teacher).sum(-1)
    squares = jnp.square(student).sum(-1) * jnp.square(teacher).sum(-1)
    cosine = product / jnp.sqrt(jnp.maximum(squares, 1e-16))
    return jnp.where(is_text, 1 - cosine, 0).sum(1) / jnp.maximum(is_text.sum(1), 1)
