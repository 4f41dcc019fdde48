"""int8 with one scale per output channel (arXiv 2208.07339, without its outliers)."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ctxext.model.quantized.base import QuantizedKernel, Shape, array_shape

LARGEST_CODE = 127
SMALLEST_SCALE = 1e-30
"""A channel whose numbers are all smaller becomes zero: its reciprocal is not a float32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Int8(QuantizedKernel):
    """w = codes x scale / 127, scale the largest |w| of the output channel.

    Codes are rounded half to even. Codes and values are those of bitsandbytes'
    `int8_vectorwise_quant` and `int8_vectorwise_dequant` without a threshold.
    """

    bits: ClassVar[float] = 8
    codes: Any
    """int8 [L, in, out], -127 to 127."""
    scales: Any
    """float32 [L, 1, out]."""

    @classmethod
    def of_shape(cls, shape: Shape) -> "Int8":
        layers, _, outputs = shape
        return cls(array_shape(np.int8, *shape), array_shape(np.float32, layers, 1, outputs))

    @classmethod
    def quantize(cls, kernel: np.ndarray) -> "Int8":
        scales = np.abs(kernel).max(axis=0, keepdims=True)
        scales[scales < SMALLEST_SCALE] = 0
        factors = np.zeros_like(scales)
        np.divide(np.float32(LARGEST_CODE), scales, out=factors, where=scales > 0)
        return cls(np.rint(kernel * factors).astype(np.int8), scales)

    def dequantize(self) -> Float[Array, "*layers i o"]:
        values = self.codes.astype(jnp.float32) * self.scales
        return values * np.float32(1 / LARGEST_CODE)

    @property
    def shape(self) -> Shape:
        return tuple(self.codes.shape)
