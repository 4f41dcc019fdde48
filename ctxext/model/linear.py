"""x W + b and adapters: the products that carry nearly all parameters, with a backward pass that CPUs do quickly.

Shapes: B batch, T tokens, i and o the sizes of input and output; kernels are [in, out].
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

Places = Int[Array, "b t"] | None
"""The numbers of tokens in their batch, which dropout draws by; None without it."""


def _narrow(kernel: Float[Array, "i o"], dtype: Any) -> Float[Array, "i o"]:
    """The kernel in the compute dtype; rounded first, or XLA casts all layers ahead of their loop and keeps that."""
    if kernel.dtype.itemsize > jnp.dtype(dtype).itemsize:
        info = jnp.finfo(dtype)
        kernel = jax.lax.reduce_precision(kernel, info.nexp, info.nmant)
    return kernel.astype(dtype)


@jax.custom_vjp
def _matmul(x: Array, kernel: Array) -> Array:
    return x @ kernel


def _matmul_forward(x: Any, kernel: Any) -> tuple[Array, tuple]:
    return x.value @ kernel.value, (
        x.value if kernel.perturbed else None,
        kernel.value if x.perturbed else None,
    )


def _matmul_backward(saved: tuple, grad: Any) -> tuple:
    """As by autodiff, but the weights' gradient turns the narrower of `x` and `grad`, which CPUs copy for it."""
    x, kernel = saved
    if isinstance(grad, SymbolicZero):
        return None, None
    if x is None:
        weights = None
    elif x.shape[-1] > grad.shape[-1]:
        weights = jnp.einsum("bto,bti->oi", grad, x).T
    else:
        weights = jnp.einsum("bti,bto->io", x, grad)
    return None if kernel is None else grad @ kernel.T, weights


_matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


class Linear(nnx.Module):
    """x W + b, and (drop(x) A) B where the parameters hold an adapter (arXiv 2106.09685; its scale is in B here)."""

    lora_a = lora_b = lora_key = lora_keep = (
        None  # leaves that `bind` attaches if the tree has them
    )

    def __init__(self, in_dim: int, out_dim: int, bias: bool, std: float, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros(out_dim)) if bias else None

    def __call__(self, x: Float[Array, "b t i"], places: Places = None) -> Float[Array, "b t o"]:
        y = _matmul(
            x, _narrow(self.kernel[...], x.dtype)
        )  # parameters stay float32, products run in the compute dtype
        if self.lora_a is not None and self.lora_b is not None:
            y = y + (self._dropped(x, places) @ self.lora_a[...].astype(x.dtype)) @ self.lora_b[
                ...
            ].astype(x.dtype)
        return (
            y
            if self.bias is None
            else y + self.bias[...].astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        )

    def _dropped(self, x: Float[Array, "b t i"], places: Places) -> Float[Array, "b t i"]:
        if self.lora_key is None or self.lora_keep is None:
            return x
        assert places is not None
        key, keep = self.lora_key[...], self.lora_keep[...]

        def kept(
            place: Array,
        ) -> Array:  # a key for every token: its draw is the same in any chunk, on any device
            return jax.random.bernoulli(jax.random.fold_in(key, place), keep, x.shape[-1:])

        return jnp.where(jax.vmap(jax.vmap(kept))(places), x / keep.astype(x.dtype), 0)
