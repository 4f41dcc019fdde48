"""A frozen kernel in few bits: integer codes and scales in place of the float matrix.

qwix has such arrays too. Its QArray is private, and its layers fail under `nnx.scan`; what is
needed here is little.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedKernel(abc.ABC):
    """A kernel [in, out], or a stack of them [L, in, out]; a pytree whose leaves are arrays.

    The leaves may be tracers, `jax.ShapeDtypeStruct` or shardings as well. Those named `codes` and
    `scales` are laid out as the float kernel, [..., a fraction of in, out], and are sharded by its
    rule (`parallel.mesh.RULES`); any other leaf is small and whole on every device.
    """

    bits: ClassVar[float]
    """Bits per number, of codes and scales together."""
    dtype: ClassVar[np.dtype] = np.dtype(np.float32)
    """The dtype of what `dequantize` returns."""

    codes: Any

    @classmethod
    @abc.abstractmethod
    def of_shape(cls, shape: Shape) -> "QuantizedKernel":
        """The form of a stack of this shape, [L, in, out], as `jax.ShapeDtypeStruct`.

        Raises ValueError for sizes that cannot be quantized.
        """

    @classmethod
    @abc.abstractmethod
    def quantize(cls, kernel: np.ndarray) -> "QuantizedKernel":
        """One float32 kernel [in, out] in this form, in host memory.

        It is computed by numpy alone, so that the codes are the same on every platform.
        """

    @abc.abstractmethod
    def dequantize(self) -> Float[Array, "*layers i o"]:
        """The float32 kernel that the codes stand for."""

    @property
    @abc.abstractmethod
    def shape(self) -> Shape:
        """The shape of the float kernel."""


def array_shape(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    """The shape of a leaf."""
    return jax.ShapeDtypeStruct(shape, dtype)
