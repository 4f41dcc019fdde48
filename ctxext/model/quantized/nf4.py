"""NF4: four bits per number in blocks of 64, of QLoRA (arXiv 2305.14314), as in bitsandbytes.

A block is 64 inputs of one output channel: 64 neighbours in the rows of the matrix as PyTorch has
it, [out, in]. Two inputs share a byte, the first in its high half.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ctxext.model.quantized.base import QuantizedKernel, Shape, array_shape

BLOCK = 64
SCALE_BLOCK = 256
"""Scales that share a scale of their own in double quantization."""
SMALLEST_SCALE = np.float32(1e-38)
"""Put in place of a smaller scale, such as that of a block of zeros, when dividing by it."""
NF4_VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""The value of each code: quantiles of a normal distribution, with an exact zero."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NF4(QuantizedKernel):
    """w = NF4_VALUES[code] x scale, scale the largest |w| of the block."""

    bits: ClassVar[float] = 4 + 32 / BLOCK
    codes: Any
    """uint8 [L, in / 2, out], two codes each."""
    scales: Any
    """float32 [L, in / 64, out]."""

    @classmethod
    def of_shape(cls, shape: Shape) -> "NF4":
        layers, inputs, outputs = shape
        _check_inputs(inputs)
        return cls(
            array_shape(np.uint8, layers, inputs // 2, outputs),
            array_shape(np.float32, layers, inputs // BLOCK, outputs),
        )

    @classmethod
    def quantize(cls, kernel: np.ndarray) -> "NF4":
        return cls(*_codes_and_scales(kernel))

    def dequantize(self) -> Float[Array, "*layers i o"]:
        return _values(self.codes, self.scales)

    @property
    def shape(self) -> Shape:
        return _shape(self.codes)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NF4Double(QuantizedKernel):
    """NF4 with double quantization: the scales, less their mean, are quantized to eight bits.

    scale = DYNAMIC_VALUES[code] x scale of 256 scales + mean. They are taken in the order of
    PyTorch's matrix, all blocks of one output channel first. The code is that of the nearest value;
    bitsandbytes on CPU takes its neighbour for about one scale in 600.
    """

    bits: ClassVar[float] = 4 + 8 / BLOCK + 32 / BLOCK / SCALE_BLOCK
    codes: Any
    """uint8 [L, in / 2, out], two codes each."""
    scales: Any
    """uint8 [L, in / 64, out], codes of the scales."""
    scales_of_scales: Any
    """float32 [L, in / 64 x out / 256], rounded up."""
    mean_scale: Any
    """float32 [L]."""

    @classmethod
    def of_shape(cls, shape: Shape) -> "NF4Double":
        layers, inputs, outputs = shape
        _check_inputs(inputs)
        blocks = inputs // BLOCK
        return cls(
            array_shape(np.uint8, layers, inputs // 2, outputs),
            array_shape(np.uint8, layers, blocks, outputs),
            array_shape(np.float32, layers, -(-blocks * outputs // SCALE_BLOCK)),
            array_shape(np.float32, layers),
        )

    @classmethod
    def quantize(cls, kernel: np.ndarray) -> "NF4Double":
        codes, scales = _codes_and_scales(kernel)
        # In float64, because the order of a float32 sum differs between libraries.
        mean = np.float32(scales.mean(dtype=np.float64))
        flat = scales.T.reshape(-1) - mean
        padded = np.zeros(-(-flat.size // SCALE_BLOCK) * SCALE_BLOCK, np.float32)
        padded[: flat.size] = flat
        rows = padded.reshape(-1, SCALE_BLOCK)
        largest = np.abs(rows).max(axis=1)
        normalized = rows / np.maximum(largest, SMALLEST_SCALE)[:, None]
        scale_codes = _nearest(normalized, DYNAMIC_VALUES).reshape(-1)[: flat.size]
        return cls(codes, scale_codes.reshape(scales.T.shape).T, largest, mean)

    def dequantize(self) -> Float[Array, "*layers i o"]:
        *layers, blocks, outputs = self.scales.shape
        factors = jnp.repeat(self.scales_of_scales, SCALE_BLOCK, axis=-1)[..., : blocks * outputs]
        factors = factors.reshape(*layers, outputs, blocks).swapaxes(-1, -2)
        values = jnp.asarray(DYNAMIC_VALUES)[self.scales]
        return _values(self.codes, values * factors + self.mean_scale[..., None, None])

    @property
    def shape(self) -> Shape:
        return _shape(self.codes)


def _dynamic_values() -> np.ndarray:
    """The 256 values of the signed dynamic data type (arXiv 1511.04561), ascending.

    For each decade 10^-6 to 1 they hold the middles of 1, 2, 4 .. 64 equal parts of its upper nine
    tenths, of both signs; then 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _linspace(2**exponent)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        scaled = np.float32(10.0 ** (exponent - 6)) * middles
        values += [*scaled.tolist(), *(-scaled).tolist()]
    return np.sort(np.array(values, np.float32))


def _linspace(parts: int) -> np.ndarray:
    """0.1 to 1 in equal parts, rounded as in torch.linspace: from both ends, with fused products.

    The result differs from numpy's in the last bit.
    """
    first = np.float32(0.1)
    step = np.float64((1 - first) / np.float32(parts))
    index = np.arange(parts + 1)
    from_end = 1 - step * (parts - index)
    return np.where(index < (parts + 1) // 2, first + step * index, from_end).astype(np.float32)


DYNAMIC_VALUES = _dynamic_values()
"""The value of each code of a scale."""


def _check_inputs(inputs: int) -> None:
    if inputs % BLOCK:
        raise ValueError(f"its blocks have {BLOCK} inputs")


def _shape(codes: Any) -> Shape:
    *layers, half_inputs, outputs = codes.shape
    return (*layers, 2 * half_inputs, outputs)


def _codes_and_scales(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed codes [in / 2, out] and scales [in / 64, out] of one kernel."""
    inputs, outputs = kernel.shape
    blocks = kernel.reshape(inputs // BLOCK, BLOCK, outputs)
    scales = np.abs(blocks).max(axis=1)
    reciprocals = 1 / np.maximum(scales, SMALLEST_SCALE)
    codes = _nearest(blocks * reciprocals[:, None], NF4_VALUES).reshape(inputs, outputs)
    return codes[0::2] << 4 | codes[1::2], scales


def _nearest(numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The index of the nearest of the ascending `values`, the lower one of two: uint8."""
    middles = (values[:-1] + values[1:]) / 2
    codes = np.zeros(numbers.shape, np.uint8)
    if len(values) > 16:
        codes[...] = np.searchsorted(middles, numbers)
        return codes
    # For few values this is ten times as fast as a binary search, a block of rows at a time.
    for rows, out in zip(numbers, codes, strict=True):
        for middle in middles:
            out += rows > middle
    return codes


def _values(
    codes: UInt8[Array, "*layers j o"], scales: Float[Array, "*layers b o"]
) -> Float[Array, "*layers i o"]:
    *layers, half_inputs, outputs = codes.shape
    pairs = jnp.stack([codes >> 4, codes & 15], axis=-2)
    blocks = pairs.reshape(*layers, half_inputs // (BLOCK // 2), BLOCK, outputs)
    values = _nf4_value(blocks) * scales[..., :, None, :]
    return values.reshape(*layers, 2 * half_inputs, outputs)


def _nf4_value(codes: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """NF4_VALUES[codes], chosen bit by bit: a table is slow to look up on accelerators."""
    choices: list[Any] = [np.float32(value) for value in NF4_VALUES]
    for bit in range(4):
        is_set = (codes >> bit & 1).astype(bool)
        pairs = zip(choices[0::2], choices[1::2], strict=True)
        choices = [jnp.where(is_set, upper, lower) for lower, upper in pairs]
    return choices[0]
