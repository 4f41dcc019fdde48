"""Next-token cross-entropy without ever holding [B, T, V] logits at long T."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention import Attention, Kernel, over_sequence
from ctxext.config import LlamaConfig
from ctxext.model import Params, bind
from ctxext.rope import Float32Rotation, Rotation
from ctxext.sharding import ONE_DEVICE, Mesh, over_devices

CHUNK = 2**24  # logits held at once, in elements


def token_losses(
    hidden: Float[Array, "b t d"], kernel: Float[Array, "d v"], targets: Int[Array, "b t"]
) -> Float[Array, "b t"]:
    """-log softmax(hidden kernel)[target], nats, float32; a chunk of tokens at a time, recomputed going backward."""
    B, T, D = hidden.shape

    @jax.checkpoint
    def losses(hidden: Array, targets: Array) -> Array:
        narrow = kernel.astype(hidden.dtype)  # cast per chunk: the chunks' gradients then add up in the kernel's dtype
        logits = jnp.matmul(hidden, narrow, preferred_element_type=jnp.float32)
        picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits, -1) - picked

    size = max(1, CHUNK // (B * kernel.shape[1]))
    if size >= T:
        return losses(hidden, targets)
    chunks = -(-T // size)
    size = -(-T // chunks)
    pad = chunks * size - T
    hidden = jnp.pad(hidden, ((0, 0), (0, pad), (0, 0))).reshape(B, chunks, size, D).swapaxes(0, 1)
    targets = jnp.pad(targets, ((0, 0), (0, pad))).reshape(B, chunks, size).swapaxes(0, 1)
    out = jax.lax.map(lambda chunk: losses(*chunk), (hidden, targets))
    return out.swapaxes(0, 1).reshape(B, -1)[:, :T]


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
    attend = over_sequence(attention, kernel, rotation, batch["positions"], batch["segment_ids"])
    attend = over_devices(attend, mesh)
    hidden, _ = model.hidden(batch["tokens"], attend, dtype=dtype, remat=remat)
    losses = token_losses(hidden, model.output_kernel(), batch["targets"])
    return (losses * batch["weights"]).sum(), batch["weights"].sum()
