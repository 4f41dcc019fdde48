"""Rotary position embeddings: frequencies, angles and the one rotation.

RoPE (arXiv 2104.09864) turns pair i of a head by the angle p * f_i at position p, with
f_i = theta^(-2i/d). A pair is (x_i, x_{i + H/2}), the rotate-half layout.
Shapes: B batch, T tokens, N heads, H head_dim (d).
"""

import abc
import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Angles = Literal["exact", "float32"]
ANGLES: tuple[Angles, ...] = ("exact", "float32")

LONG = 16
"""How many windows long the text is for which a scaling of fixed frequencies is checked."""


@dataclasses.dataclass(frozen=True)
class RopeBase:
    """The rotary embedding of pre-training: head_dim d, theta, and the window L in tokens.

    There are no defaults on purpose. Raises ValueError for an odd head_dim and for sizes below 1.
    """

    head_dim: int
    theta: float
    original_max_position_embeddings: int
    sliding_theta: float | None = None
    """That of layers with a sliding window, where they have another one (Gemma 3)."""

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim must be even and positive, got {self.head_dim}")
        thetas = [self.theta] if self.sliding_theta is None else [self.theta, self.sliding_theta]
        for theta in thetas:
            if not 0 < theta < 1e300:
                raise ValueError(f"rope_theta must be a positive number, got {theta}")
        if self.original_max_position_embeddings < 1:
            raise ValueError(
                f"original_max_position_embeddings must be positive, "
                f"got {self.original_max_position_embeddings}"
            )

    @property
    def inv_freq(self) -> np.ndarray:
        """f_i = theta^(-2i/d), float64 [d/2], radians per token, highest frequency first."""
        return inverse_frequencies(self.head_dim, self.theta)

    @property
    def of_sliding_layers(self) -> "RopeBase":
        """The rotary embedding of layers with a sliding window; most models have one for all."""
        theta = self.theta if self.sliding_theta is None else self.sliding_theta
        return dataclasses.replace(self, theta=theta, sliding_theta=None)


def inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """theta^(-2i/d) for i < d/2, float64 [d/2], radians per token."""
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


class Rotation(NamedTuple):
    """Frequencies on the device, exact at any position.

    A pytree whose shapes depend on head_dim alone, so that no factor and no length recompiles.
    `turns_high` and `turns_low` are the words of f / 2 pi as a 64-bit binary fraction, uint32
    [H/2] each. Its product with the position, modulo 2^32, is the exact fraction of a turn at any
    position from -2^31 to before 2^31, without float64.
    """

    turns_high: Array
    turns_low: Array
    attention_factor: Array
    leading: "tuple[Array, Rotation] | None" = None
    """How many of the first positions rotate differently, and how."""
    seq_len: Array | None = None
    """The context that these are for, in tokens, where attention follows it; None elsewhere."""
    sliding: "Rotation | None" = None
    """What layers with a sliding window rotate by; None: what all layers do."""
    stretch: "tuple[Any, Rotation] | None" = None
    """`first` and the other frequencies of an `attention.pieces.Stretch`; None where none is."""

    def tables(
        self, positions: Int[Array, "*shape"], part: Float[Array, "*shape"] | None = None
    ) -> tuple[Float[Array, "*shape h"], Float[Array, "*shape h"]]:
        """cos and sin times attention_factor, float32 [..., H/2], within 1e-6 of float64.

        part: of a position in 0 .. 1, added to the whole one.
        """
        p = positions.astype(jnp.int32)[..., None]
        shape = (1,) * positions.ndim + self.turns_high.shape
        high = self.turns_high.reshape(shape)
        low = self.turns_low.reshape(shape)
        # p * low / 2^32 in float32, cut to whole numbers, is off by one unit of the high word for
        # |p| < 2^22 and by at most 400 for |p| < 2^31: 1e-7 turns.
        carry = (p.astype(jnp.float32) * (low.astype(jnp.float32) * 2.0**-32)).astype(jnp.int32)
        # Signed numbers wrap around modulo 2^32 too, to angles in [-pi, pi).
        turns = p * jax.lax.bitcast_convert_type(high, jnp.int32) + carry
        angles = turns.astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
        if part is not None:
            angles = angles + part[..., None] * (
                high.astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
            )
        return _cos_sin(angles, positions, part, self.attention_factor, self.leading)


class Float32Rotation(NamedTuple):
    """Angles as float32 products p * f, the arithmetic of transformers.

    At position 131,071 they are off by 4e-3 rad.
    """

    inv_freq: Array
    attention_factor: Array
    leading: "tuple[Array, Float32Rotation] | None" = None
    """How many of the first positions rotate differently, and how."""
    seq_len: Array | None = None
    """The context that these are for, in tokens, where attention follows it; None elsewhere."""
    sliding: "Float32Rotation | None" = None
    """What layers with a sliding window rotate by; None: what all layers do."""
    stretch: "tuple[Any, Float32Rotation] | None" = None
    """`first` and the other frequencies of an `attention.pieces.Stretch`; None where none is."""

    def tables(
        self, positions: Int[Array, "*shape"], part: Float[Array, "*shape"] | None = None
    ) -> tuple[Float[Array, "*shape h"], Float[Array, "*shape h"]]:
        """cos and sin times attention_factor, float32 [..., H/2]; part: see `Rotation.tables`."""
        inv_freq = self.inv_freq.reshape((1,) * positions.ndim + self.inv_freq.shape)
        p = positions.astype(jnp.float32)
        if part is not None:
            p = p + part
        angles = p[..., None] * inv_freq
        return _cos_sin(angles, positions, part, self.attention_factor, self.leading)


def _cos_sin(
    angles: Array, positions: Array, part: Array | None, attention_factor: Array, leading: Any
) -> tuple[Array, Array]:
    """The two tables, with those of the leading positions where there are any."""
    cos = jnp.cos(angles) * attention_factor
    sin = jnp.sin(angles) * attention_factor
    if leading is None:
        return cos, sin
    count, rotation = leading
    is_leading = (positions < count)[..., None]
    leading_cos, leading_sin = rotation.tables(positions, part)
    return jnp.where(is_leading, leading_cos, cos), jnp.where(is_leading, leading_sin, sin)


@dataclasses.dataclass(frozen=True, eq=False)
class Rope:
    """The result of a scaling: `inv_freq`, float64 [H/2] on the host, and a factor on cos and sin.

    Logits scale by attention_factor**2, as it multiplies both query and key. `leading` is how many
    of the first positions keep other frequencies, and those, float64 [H/2]; their factor is 1.
    `sliding` is the result for layers with a sliding window, where it is another one.
    """

    inv_freq: np.ndarray
    attention_factor: float = 1.0
    leading: tuple[int, np.ndarray] | None = None
    sliding: "Rope | None" = None

    @property
    def of_full_layers(self) -> "Rope":
        """The result for layers that see all tokens."""
        return self if self.sliding is None else dataclasses.replace(self, sliding=None)

    @property
    def of_sliding_layers(self) -> "Rope":
        """The result for layers with a sliding window, whether or not it is another one."""
        return self if self.sliding is None else self.sliding

    def rotation(self, angles: Angles = "exact") -> Rotation | Float32Rotation:
        """The device form: "exact" to 1e-6 at any position, "float32" with transformers' rounding.

        Raises ValueError for other `angles`.
        """
        if angles not in ANGLES:
            raise ValueError(f"angles {angles!r} are not known; choose one of {', '.join(ANGLES)}")
        # Callers keep the result, so that it must be a value even inside a trace.
        with jax.ensure_compile_time_eval():
            rotation = _on_device(self.inv_freq, self.attention_factor, angles)
            if self.leading is not None:
                count, inv_freq = self.leading
                leading = (jnp.int32(count), _on_device(inv_freq, 1.0, angles))
                rotation = rotation._replace(leading=leading)
            if self.sliding is not None:
                rotation = rotation._replace(sliding=self.sliding.rotation(angles))
            return rotation

    def equals(self, other: "Rope") -> bool:
        """True if both rotate every position by exactly the same angles, with the same factor."""
        if (self.leading is None) != (other.leading is None):
            return False
        if self.leading is not None and other.leading is not None:
            same_count = self.leading[0] == other.leading[0]
            if not same_count or not np.array_equal(self.leading[1], other.leading[1]):
                return False
        if (self.sliding is None) != (other.sliding is None):
            return False
        if self.sliding is not None and other.sliding is not None:
            if not self.sliding.equals(other.sliding):
                return False
        return self.attention_factor == other.attention_factor and np.array_equal(
            self.inv_freq, other.inv_freq
        )


def _on_device(
    inv_freq: np.ndarray, attention_factor: float, angles: Angles
) -> Rotation | Float32Rotation:
    factor = jnp.float32(attention_factor)
    if angles == "float32":
        return Float32Rotation(jnp.asarray(inv_freq, jnp.float32), factor)
    words = [int(round(float(f) / (2 * np.pi) * 2.0**64)) % 2**64 for f in inv_freq]
    high = np.array([word >> 32 for word in words], np.uint32)
    low = np.array([word & 0xFFFFFFFF for word in words], np.uint32)
    return Rotation(jnp.asarray(high), jnp.asarray(low), factor)


class RopeScaling(abc.ABC):
    """The first seam: which frequencies. Subclasses are frozen dataclasses and final."""

    type_tag: ClassVar[str] = "rope/"
    depends_on_length: ClassVar[bool] = False
    """True where `rope` changes with `seq_len`; decode caches then keep keys un-rotated."""

    @abc.abstractmethod
    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        """Frequencies for a context of `seq_len` tokens over the pre-trained `base`."""

    def switch_lengths(self, base: RopeBase) -> tuple[int, ...] | None:
        """The lengths in tokens, ascending, beyond which the frequencies are others.

        () where they are the same at every length; None where they follow every length, unless a
        scaling that `depends_on_length` says more.
        """
        return None if self.depends_on_length else ()


@dataclasses.dataclass(frozen=True)
class Unscaled(RopeScaling):
    """No method: the frequencies of the checkpoint as it is.

    Over a base without a checkpoint, plain RoPE, f_i = theta^(-2i/d) (arXiv 2104.09864).
    """

    aliases: ClassVar[tuple[str, ...]] = ("none",)
    paper: ClassVar[str] = "2104.09864"

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq)


@dataclasses.dataclass(frozen=True)
class Plain(RopeScaling):
    """f_i = theta^(-2i/d), whatever scaling the checkpoint carries (arXiv 2104.09864).

    For a checkpoint that carries none, the same as `none`.
    """

    aliases: ClassVar[tuple[str, ...]] = ("plain-rope",)
    paper: ClassVar[str] = "2104.09864"

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq)


@dataclasses.dataclass(frozen=True)
class RopeWrapper(RopeScaling):
    """A scaling that changes the frequencies of another one, such as CoPE(inner=Yarn(8)).

    It follows the length if `inner` does, and has the factor of `inner` unless it has one itself.
    """

    inner: RopeScaling = dataclasses.field(default=Unscaled(), kw_only=True)
    """The scaling whose frequencies are changed; by default those of the checkpoint."""

    def __post_init__(self) -> None:
        """Raise ValueError unless `inner` is another scaling, at any depth of other wrappers."""
        name = type(self).__name__
        if not isinstance(self.inner, RopeScaling):
            raise ValueError(
                f"{name} changes the frequencies of another scaling, such as Yarn, but inner is "
                f"{self.inner!r:.100}"
            )
        if any(type(link) is type(self) for link in scaling_chain(self.inner)):
            raise ValueError(f"{name} cannot wrap itself; give it once, and another one as inner")

    @property
    def depends_on_length(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the wrapped frequencies change with the length."""
        return self.inner.depends_on_length

    def switch_lengths(self, base: RopeBase) -> tuple[int, ...] | None:
        lengths = self.inner.switch_lengths(base)
        follows_by_itself = self.depends_on_length and lengths == ()
        return None if follows_by_itself else lengths


def scaling_chain(scaling: RopeScaling) -> list[RopeScaling]:
    """The scaling, the one in its field `inner`, and so on."""
    inner = getattr(scaling, "inner", None)
    return [scaling, *scaling_chain(inner)] if isinstance(inner, RopeScaling) else [scaling]


def scaling_factor(scaling: RopeScaling) -> float | None:
    """The factor of a scaling, or that of the scaling it wraps; None if none has one."""
    factors = [getattr(link, "factor", None) for link in scaling_chain(scaling)]
    return next((float(factor) for factor in factors if isinstance(factor, int | float)), None)


def scaling_name(scaling: RopeScaling) -> str:
    """The class of a scaling for people, and what it wraps: "CoPE over Yarn"."""
    chain = scaling_chain(scaling)
    wrapped = [link for link in chain[1:] if link != Unscaled()]
    return " over ".join(type(link).__name__ for link in [scaling, *wrapped])


def rope_at(scaling: RopeScaling, base: RopeBase, seq_len: int) -> Rope:
    """The frequencies of `scaling` for a context of `seq_len` tokens, its declaration checked.

    Training, evaluation, export and planning all ask here, always with the true length. Over a base
    with a theta for layers with a sliding window, the scaling is asked for those too. A scaling
    that does not declare `depends_on_length` gives the same Rope object at every length. Raises
    ValueError if its frequencies change with the length all the same: it would train with some
    and evaluate with others.
    """
    rope = _rope_of_layers(scaling, base, seq_len)
    if scaling.depends_on_length:
        return rope
    window = base.original_max_position_embeddings
    fixed = _rope_of_any_length(scaling, base)
    _check_declaration(scaling, (window, fixed), (seq_len, rope))
    return fixed


def _rope_of_layers(scaling: RopeScaling, base: RopeBase, seq_len: int) -> Rope:
    """The frequencies of all layers, those with a window apart where they have another theta."""
    rope = scaling.rope(base, seq_len)
    if rope.sliding is None and base.sliding_theta is not None:
        rope = dataclasses.replace(rope, sliding=scaling.rope(base.of_sliding_layers, seq_len))
    if rope.sliding is not None and rope.sliding.sliding is not None:
        raise ValueError(
            f"{scaling_name(scaling)} gives frequencies of layers with a window inside those of "
            "layers with a window; leave `sliding` of the inner Rope None"
        )
    return rope


@functools.lru_cache(maxsize=4096)
def rotation_at(
    scaling: RopeScaling, base: RopeBase, seq_len: int, angles: Angles = "exact"
) -> Rotation | Float32Rotation:
    """`rope_at` in its device form, cached; raises ValueError as it does.

    Frequencies that do not follow the length are the same arrays at every length.
    """
    return _rotation(rope_at(scaling, base, seq_len), angles)


@functools.lru_cache(maxsize=4096)
def _rotation(rope: Rope, angles: Angles) -> Rotation | Float32Rotation:
    return rope.rotation(angles)


@functools.lru_cache(maxsize=1024)
def _rope_of_any_length(scaling: RopeScaling, base: RopeBase) -> Rope:
    """The Rope of fixed frequencies, as at the window, compared with that of a long text."""
    window = base.original_max_position_embeddings
    rope = _rope_of_layers(scaling, base, window)
    try:
        long_rope = _rope_of_layers(scaling, base, LONG * window)
    except ValueError:  # a scaling may refuse lengths, and this one is only a check
        return rope
    _check_declaration(scaling, (window, rope), (LONG * window, long_rope))
    return rope


def _check_declaration(
    scaling: RopeScaling, one: tuple[int, Rope], other: tuple[int, Rope]
) -> None:
    if not one[1].equals(other[1]):
        raise ValueError(
            f"{scaling_name(scaling)} gives other frequencies at {other[0]} tokens than at "
            f"{one[0]}, but does not say so; set depends_on_length = True in the class"
        )


def target_length(scaling: RopeScaling, window: int) -> int | None:
    """factor x L in tokens, the context that `scaling` is made for, L being `window`.

    None for a scaling without a factor, or whose frequencies follow the length.
    """
    factor = scaling_factor(scaling)
    if scaling.depends_on_length or factor is None:
        return None
    return round(factor * window)


def check_factor(factor: float) -> None:
    """Raise ValueError unless `factor`, new window over old window, is finite and at least 1."""
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor must be a finite number of at least 1, got {factor}")


def check_attention_factor(attention_factor: float | None) -> None:
    """Raise ValueError unless it is positive and finite, or None, which leaves it to the method."""
    if attention_factor is not None and not 0 < attention_factor < math.inf:
        raise ValueError(
            f"attention_factor must be positive and finite (1 changes nothing), "
            f"got {attention_factor}"
        )


def rotate(
    x: Float[Array, "b t n h"], cos: Float[Array, "#b t h2"], sin: Float[Array, "#b t h2"]
) -> Float[Array, "b t n h"]:
    """Turn every pair (x_i, x_{i + H/2}) by its angle; returned in the dtype of `x`.

    Computed in float32, because products in bfloat16 would lose the position.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos = cos[:, :, None, :]
    sin = sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return rotated.astype(x.dtype)
