"""Rotary position embeddings: frequencies, angles and the one rotation.

RoPE (arXiv 2104.09864) turns pair i of a head by the angle p * f_i at position p, with f_i = theta^(-2i/d).
Shapes: B batch, T tokens, N heads, H head_dim (d); a pair is (x_i, x_{i + H/2}), the rotate-half layout.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Angles = Literal["exact", "float32"]
ANGLES: tuple[Angles, ...] = ("exact", "float32")


@dataclasses.dataclass(frozen=True)
class RopeBase:
    """The rotary embedding of pre-training: head_dim d, theta, and the window L in tokens. No defaults on purpose."""

    head_dim: int
    theta: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim must be even and positive, got {self.head_dim}")
        if self.theta <= 0:
            raise ValueError(f"rope_theta must be positive, got {self.theta}")
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                f"original_max_position_embeddings must be positive, "
                f"got {self.original_max_position_embeddings}"
            )

    @property
    def inv_freq(self) -> np.ndarray:
        """f_i = theta^(-2i/d), float64 [d/2], radians per token, highest frequency first."""
        return inverse_frequencies(self.head_dim, self.theta)


def inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """theta^(-2i/d) for i < d/2, float64, radians per token."""
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


class Rotation(NamedTuple):
    """Frequencies on the device: a pytree whose shapes depend on head_dim alone, so no factor or length recompiles.

    `turns_high`, `turns_low`: f / 2 pi as a 64-bit binary fraction, two uint32 words [H/2]. A product with the
    position modulo 2^32 is then the exact fraction of a turn, at any position below 2^31 and without float64.
    """

    turns_high: Array
    turns_low: Array
    attention_factor: Array
    leading: "tuple[Array, Rotation] | None" = None
    """Where the first positions turn otherwise: how many, and how."""

    def tables(
        self, positions: Int[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape h"], Float[Array, "*shape h"]]:
        """cos and sin times attention_factor, float32 [..., H/2]; within 1e-6 of float64 at any position."""
        p = positions.astype(jnp.uint32)[..., None]
        # p * low / 2^32 in float32, cut to whole numbers, is off by one place of the high word for p < 2^22 and by at
        # most 400 for p < 2^31: 1e-7 turns.
        shape = (1,) * positions.ndim + self.turns_high.shape
        high, low = self.turns_high.reshape(shape), self.turns_low.reshape(shape)
        carry = (p.astype(jnp.float32) * (low.astype(jnp.float32) * 2.0**-32)).astype(jnp.uint32)
        turns = jax.lax.bitcast_convert_type(
            p * high + carry, jnp.int32
        )  # signed: angles in [-pi, pi)
        angles = turns.astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
        cos, sin = jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor
        return _leading(self.leading, positions, cos, sin)


class Float32Rotation(NamedTuple):
    """Angles as float32 products p * f, the arithmetic of transformers; off by 4e-3 rad at position 131,071."""

    inv_freq: Array
    attention_factor: Array
    leading: "tuple[Array, Float32Rotation] | None" = None

    def tables(
        self, positions: Int[Array, "*shape"]
    ) -> tuple[Float[Array, "*shape h"], Float[Array, "*shape h"]]:
        """cos and sin times attention_factor, float32 [..., H/2]."""
        inv_freq = self.inv_freq.reshape((1,) * positions.ndim + self.inv_freq.shape)
        angles = positions.astype(jnp.float32)[..., None] * inv_freq
        cos, sin = jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor
        return _leading(self.leading, positions, cos, sin)


def _leading(leading: Any, positions: Array, cos: Array, sin: Array) -> tuple[Array, Array]:
    """The tables, with those of the leading positions put in where there are any."""
    if leading is None:
        return cos, sin
    count, rotation = leading
    first = (positions < count)[..., None]
    plain_cos, plain_sin = rotation.tables(positions)
    return jnp.where(first, plain_cos, cos), jnp.where(first, plain_sin, sin)


@dataclasses.dataclass(frozen=True, eq=False)
class Rope:
    """What a scaling returns: `inv_freq` float64 [H/2] on the host and the factor m on cos and sin.

    Logits scale by attention_factor**2, as it multiplies both query and key. `leading`: how many of the first
    positions keep other frequencies, and which, float64 [H/2]; their factor on cos and sin is 1.
    """

    inv_freq: np.ndarray
    attention_factor: float = 1.0
    leading: tuple[int, np.ndarray] | None = None

    def rotation(self, angles: Angles = "exact") -> Rotation | Float32Rotation:
        """The device form. `exact` is right to 1e-6 at any position, `float32` repeats transformers' rounding."""
        if angles not in ANGLES:
            raise ValueError(f"angles {angles!r} are not known; choose one of {', '.join(ANGLES)}")
        with (
            jax.ensure_compile_time_eval()
        ):  # a value, also when asked for inside a trace: callers keep it
            rotation = _on_device(self.inv_freq, self.attention_factor, angles)
            if self.leading is None:
                return rotation
            count, inv_freq = self.leading
            return rotation._replace(leading=(jnp.int32(count), _on_device(inv_freq, 1.0, angles)))


def _on_device(
    inv_freq: np.ndarray, attention_factor: float, angles: Angles
) -> Rotation | Float32Rotation:
    factor = jnp.float32(attention_factor)
    if angles == "float32":
        return Float32Rotation(jnp.asarray(inv_freq, jnp.float32), factor)
    words = [int(round(float(f) / (2 * np.pi) * 2.0**64)) % 2**64 for f in inv_freq]
    high = np.array([w >> 32 for w in words], np.uint32)
    low = np.array([w & 0xFFFFFFFF for w in words], np.uint32)
    return Rotation(jnp.asarray(high), jnp.asarray(low), factor)


class RopeScaling(abc.ABC):
    """The first seam: which frequencies. Subclasses are frozen dataclasses and final."""

    depends_on_length: ClassVar[bool] = False
    """True where `rope` changes with `seq_len`; caches then keep keys un-rotated."""

    @abc.abstractmethod
    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        """Frequencies for a context of `seq_len` tokens over the pre-trained `base`."""


def check_factor(factor: float) -> None:
    """Raises ValueError unless `factor`, the new window over the old one, is a number from 1 up."""
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor must be a finite number of at least 1, got {factor}")


def check_attention_factor(attention_factor: float | None) -> None:
    """Raises ValueError unless it is None, which leaves it to the method, or a positive number."""
    if attention_factor is not None and not 0 < attention_factor < math.inf:
        raise ValueError(
            f"attention_factor must be positive and finite (1 changes nothing), got {attention_factor}"
        )


@dataclasses.dataclass(frozen=True)
class Unscaled(RopeScaling):
    """Plain RoPE, f_i = theta^(-2i/d) (arXiv 2104.09864)."""

    aliases: ClassVar[tuple[str, ...]] = ("none",)
    paper: ClassVar[str] = "2104.09864"

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq)


def rotate(
    x: Float[Array, "b t n h"], cos: Float[Array, "#b t h2"], sin: Float[Array, "#b t h2"]
) -> Float[Array, "b t n h"]:
    """Turn every pair (x_i, x_{i + H/2}) by its angle; computed in float32, returned in the dtype of `x`."""
    first, second = jnp.split(
        x.astype(jnp.float32), 2, axis=-1
    )  # bfloat16 products would lose position
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )
