"""x W + b with adapters: the products that hold nearly all parameters.

Their backward pass is written by hand, because autodiff's is slow on CPUs.
Shapes: B batch, T tokens, i and o the sizes of input and output; kernels are [in, out].
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from ctxext.model.quantized import QuantizedKernel

TokenIndices = Int[Array, "b t"] | None
"""The number of each token in its batch, which seeds its dropout; None without dropout."""


class Linear(nnx.Module):
    """x W + b, and + (dropout(x) A) B if the parameters hold an adapter (arXiv 2106.09685).

    The scale of the adapter is in B (`lora.materialize`) or next to it (`lora.hold`). Parameters
    stay float32; products run in the compute dtype.
    """

    # Leaves that `decoder.bind` attaches if the parameter tree has them.
    lora_a = lora_b = lora_scale = lora_key = lora_keep = None

    def __init__(self, in_dim: int, out_dim: int, bias: bool, std: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros(out_dim)) if bias else None

    def __call__(
        self, x: Float[Array, "b t i"], token_indices: TokenIndices = None
    ) -> Float[Array, "b t o"]:
        kernel = self.kernel.get_value()
        if isinstance(kernel, QuantizedKernel):
            y = _quantized_matmul(x, kernel)
        else:
            y = _matmul(x, _cast_kernel(kernel, x.dtype))
        if self.lora_a is not None and self.lora_b is not None:
            a = self.lora_a[...].astype(x.dtype)
            b = self.lora_b[...]
            if self.lora_scale is not None:
                b = self.lora_scale[...] * b
            y = y + (self._dropout(x, token_indices) @ a) @ b.astype(x.dtype)
        if self.bias is None:
            return y
        return y + self.bias[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))

    def _dropout(
        self, x: Float[Array, "b t i"], token_indices: TokenIndices
    ) -> Float[Array, "b t i"]:
        if self.lora_key is None or self.lora_keep is None:
            return x
        assert token_indices is not None
        key = self.lora_key[...]
        keep = self.lora_keep[...]

        # One key per token, so that its draw is the same in any chunk and on any device.
        def is_kept(index: Array) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, index), keep, x.shape[-1:])

        kept = jax.vmap(jax.vmap(is_kept))(token_indices)
        return jnp.where(kept, x / keep.astype(x.dtype), 0)


def _cast_kernel(kernel: Float[Array, "i o"], dtype: Any) -> Float[Array, "i o"]:
    """The kernel in the compute dtype.

    It is rounded first: otherwise XLA casts the kernels of all layers before their loop and keeps
    them in memory.
    """
    if kernel.dtype.itemsize > jnp.dtype(dtype).itemsize:
        info = jnp.finfo(dtype)
        kernel = jax.lax.reduce_precision(kernel, info.nexp, info.nmant)
    return kernel.astype(dtype)


@jax.checkpoint
def _quantized_matmul(x: Array, kernel: QuantizedKernel) -> Array:
    """x W for a quantized W, which the backward pass dequantizes again.

    Kept for it, the float kernels of all layers would be in memory at once.
    """
    return _matmul(x, _cast_kernel(kernel.dequantize(), x.dtype))


@jax.custom_vjp
def _matmul(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _matmul_forward(x: Any, kernel: Any) -> tuple[Array, tuple]:
    saved_x = x.value if kernel.perturbed else None
    saved_kernel = kernel.value if x.perturbed else None
    return x.value @ kernel.value, (saved_x, saved_kernel)


def _matmul_backward(saved: tuple, grad: Any) -> tuple:
    """The gradients of autodiff, except that the smaller of `x` and `grad` is transposed.

    The gradient of the kernel is a product over tokens, for which CPUs copy one of the two.
    """
    x, kernel = saved
    if isinstance(grad, SymbolicZero):
        return None, None
    if x is None:
        kernel_grad = None
    elif x.shape[-1] > grad.shape[-1]:
        kernel_grad = jnp.einsum("bto,bti->oi", grad, x).T
    else:
        kernel_grad = jnp.einsum("bti,bto->io", x, grad)
    x_grad = None if kernel is None else grad @ kernel.T
    return x_grad, kernel_grad


_matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)
