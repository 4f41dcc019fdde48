"""Next-token cross-entropy without ever holding [B, T, V] logits at long T."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention import Attention, Kernel
from ctxext.config import LlamaConfig
from ctxext.model import Params, bind
from ctxext.rope import Float32Rotation, Rotation
from ctxext.sharding import ONE_DEVICE, Mesh, attend_over

CHUNK = 2**24  # logits held at once by a device, in elements


def token_losses(
    hidden: Float[Array, "b t d"], kernel: Float[Array, "d v"], targets: Int[Array, "b t"], mesh: Mesh = ONE_DEVICE
) -> Float[Array, "b t"]:
    """-log softmax(hidden kernel)[target], nats, float32; a chunk of tokens at a time, recomputed going backward."""
    B, T, D = hidden.shape
    built = mesh.build()
    S = built.shape["seq"]  # every device takes its chunks from its own part of T

    @jax.checkpoint
    def losses(hidden: Array, targets: Array) -> Array:
        narrow = kernel.astype(hidden.dtype)  # cast per chunk: the chunks' gradients then add up in the kernel's dtype
        logits = jnp.matmul(hidden, narrow, preferred_element_type=jnp.float32)
        picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits, -1) - picked

    size = max(1, CHUNK * built.size // (B * S * kernel.shape[1]))
    if size >= T // S:
        return losses(hidden, targets)
    chunks = -(-T // (S * size))
    size = -(-T // (S * chunks))
    pad = chunks * size - T // S

    def cut(x: Array) -> Array:  # [B, T, ...] -> [chunks, B, S, size, ...]
        x = x.reshape(B, S, T // S, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, 0), (0, pad), *[(0, 0)] * (x.ndim - 3)))
        return jnp.moveaxis(x.reshape(B, S, chunks, size, *x.shape[3:]), 2, 0)

    out = jax.lax.map(lambda chunk: losses(*chunk), (cut(hidden), cut(targets)))
    return jnp.moveaxis(out, 0, 2).reshape(B, S, chunks * size)[:, :, : T // S].reshape(B, T)


def batch_loss(
    params: Params,
    batch: Mapping[str, Array],
    rotation: Rotation | Float32Rotation,
    *,
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    remat: str,
    mesh: Mesh = ONE_DEVICE,
) -> tuple[Array, Array]:
    """(sum of weighted losses in nats, sum of weights) of a batch with the fields of `data.Batch`, all [B, T]."""
    model = bind(config, params)
    batch = {name: mesh.ring_order(x) for name, x in batch.items()}  # a sum does not mind the order of its terms
    attend = attend_over(mesh, attention, kernel, rotation, batch["positions"], batch["segment_ids"])
    hidden, _ = model.hidden(batch["tokens"], attend, dtype=dtype, remat=remat)
    losses = token_losses(hidden, model.output_kernel(), batch["targets"], mesh)
    return (losses * batch["weights"]).sum(), batch["weights"].sum()
