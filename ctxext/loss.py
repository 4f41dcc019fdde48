"""Next-token cross-entropy without ever holding [B, T, V] logits at long T."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ctxext.attention import Attention, Kernel
from ctxext.config import LlamaConfig
from ctxext.model import Params, bind, drops
from ctxext.rope import Float32Rotation, Rotation
from ctxext.sharding import ONE_DEVICE, ROWS, Mesh, attend_over

CHUNK = 2**24  # logits held at once by a device, in elements
MLP_TOKENS = 4096  # of a device, whose MLP is held at once going backward


def over_chunks(function: Callable[..., Array], mesh: Mesh, tokens: int, *arrays: Array) -> Array:
    """`function` of arrays [B, T, ...] on about `tokens` tokens of a device at a time, recomputed going backward.

    Every device takes its chunks from its own part of the rows and of T.
    """
    B, T = arrays[0].shape[:2]
    built, shards = mesh.build(), mesh.row_shards
    S = built.shape["seq"]
    part, function = T // S, jax.checkpoint(function)
    size = max(1, tokens * shards // B)
    if size >= part:
        return function(*arrays)
    chunks = -(-part // size)
    size = -(-part // chunks)
    owner = NamedSharding(built, PartitionSpec((*ROWS, "seq") if B % shards == 0 else None))

    def cut(x: Array) -> Array:  # [B, T, ...] -> [chunks, B * S, size, ...]
        x = x.reshape(B * S, part, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, chunks * size - part), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(B * S, chunks, size, *x.shape[2:]).swapaxes(0, 1)

    def one(chunk: tuple[Array, ...]) -> Array:
        if built.size == 1:
            return function(*chunk)
        # Pinned, or the partitioner forgets inside the loop who has which rows.
        return jax.lax.with_sharding_constraint(function(*jax.lax.with_sharding_constraint(chunk, owner)), owner)

    out = jax.lax.map(one, tuple(map(cut, arrays))).swapaxes(0, 1)
    return out.reshape(B * S, chunks * size, *out.shape[3:])[:, :part].reshape(B, T, *out.shape[3:])


def token_losses(
    hidden: Float[Array, "b t d"], kernel: Float[Array, "d v"], targets: Int[Array, "b t"], mesh: Mesh = ONE_DEVICE
) -> Float[Array, "b t"]:
    """-log softmax(hidden kernel)[target], nats, float32; a chunk of tokens at a time, recomputed going backward."""
    return _of_logits(lambda logits, picked: jax.nn.logsumexp(logits, -1) - picked, hidden, kernel, targets, mesh)


def token_scores(
    hidden: Float[Array, "b t d"], kernel: Float[Array, "d v"], targets: Int[Array, "b t"], mesh: Mesh = ONE_DEVICE
) -> Float[Array, "b t 2"]:
    """The loss of each target, nats, and how far the best logit lies above the target's: 0 where greedy takes it."""

    def scores(logits: Array, picked: Array) -> Array:
        return jnp.stack([jax.nn.logsumexp(logits, -1) - picked, logits.max(-1) - picked], -1)

    return _of_logits(scores, hidden, kernel, targets, mesh)


def _of_logits(
    function: Callable[[Array, Array], Array], hidden: Array, kernel: Array, targets: Array, mesh: Mesh
) -> Array:
    """`function` of the logits [b, t, V] of a chunk of tokens and of those of the targets [b, t]."""

    def chunk(hidden: Array, targets: Array) -> Array:
        # Cast per chunk: the chunks' gradients then add up in the kernel's dtype.
        narrow = mesh.pin(kernel, name="lm_head.kernel").astype(hidden.dtype)
        logits = jnp.matmul(hidden, narrow, preferred_element_type=jnp.float32)
        return function(logits, jnp.take_along_axis(logits, targets[..., None], -1)[..., 0])

    tokens = max(1, CHUNK * mesh.build().shape["tensor"] // kernel.shape[1])
    return over_chunks(chunk, mesh, tokens, hidden, targets)


def chunked_mlp(mlp: Any, x: Array, places: Array | None, mesh: Mesh) -> Array:
    arrays = (x,) if places is None else (x, places)
    return over_chunks(lambda *chunk: mesh.pin(mlp)(*chunk), mesh, MLP_TOKENS, *arrays)


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
    model, shape = bind(config, mesh.lookup(params)), batch["tokens"].shape
    places = mesh.ring_order(jnp.arange(np.prod(shape)).reshape(shape)) if drops(params) else None
    batch = {name: mesh.ring_order(x) for name, x in batch.items()}  # a sum does not mind the order of its terms
    attend = attend_over(mesh, attention, kernel, rotation, batch["positions"], batch["segment_ids"])
    run_mlp = functools.partial(chunked_mlp, mesh=mesh) if remat == "full" else None
    hidden, _ = model.hidden(batch["tokens"], attend, dtype=dtype, remat=remat, places=places, run_mlp=run_mlp)
    losses = token_losses(hidden, model.output_kernel(), batch["targets"], mesh)
    # The way back starts from the weights, so not before the losses: left to last, they keep the hidden states.
    losses, weights = jax.lax.optimization_barrier((losses, batch["weights"]))
    return (losses * weights).sum(), weights.sum()
