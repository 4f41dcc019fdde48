"""Next-token cross-entropy without ever holding [B, T, V] logits at long T."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ctxext.attention import Attention, Kernel
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, bind, drops
from ctxext.parallel.attention import make_sharded_attention, ring_order
from ctxext.parallel.mesh import ONE_DEVICE, ROWS, Mesh
from ctxext.rope import Float32Rotation, Rotation

CHUNK = 2**24  # logits held at once by a device, in elements
MLP_TOKENS = 4096  # of a device, whose MLP is held at once going backward


def over_chunks(function: Callable[..., Array], mesh: Mesh, tokens: int, *arrays: Array) -> Array:
    """`function` of arrays [B, T, ...] on about `tokens` tokens of a device at a time, recomputed going backward.

    Every device takes its chunks from its own part of the rows and of T.
    """
    chunks, function = _Chunks.of(arrays[0].shape, mesh, tokens), jax.checkpoint(function)
    if chunks.count == 1:
        return function(*arrays)

    def one(chunk: tuple[Array, ...]) -> Array:
        return chunks.with_sharding_constraint(function(*chunks.with_sharding_constraint(chunk)))

    return chunks.join(jax.lax.map(one, tuple(map(chunks.cut, arrays))))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """How arrays [B, T, ...] are cut into `count` arrays [B * S, size, ...], S devices along T, the last one padded."""

    shape: tuple[int, int]
    parts: int
    count: int
    size: int
    owner: NamedSharding

    @classmethod
    def of(cls, shape: tuple[int, ...], mesh: Mesh, tokens: int) -> "_Chunks":
        """`tokens`: about as many of a device at a time."""
        (B, T), shards, built = shape[:2], mesh.row_shards, mesh.build()
        S = built.shape["seq"]
        count = -(-(T // S) // max(1, tokens * shards // B))
        owner = NamedSharding(built, PartitionSpec((*ROWS, "seq") if B % shards == 0 else None))
        return cls((B, T), S, count, -(-(T // S) // count), owner)

    def cut(self, x: Array) -> Array:
        """[B, T, ...] -> [count, B * S, size, ...]."""
        (B, T), S = self.shape, self.parts
        x = x.reshape(B * S, T // S, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, self.count * self.size - T // S), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(B * S, self.count, self.size, *x.shape[2:]).swapaxes(0, 1)

    def join(self, x: Array) -> Array:
        """The inverse of `cut`."""
        (B, T), S = self.shape, self.parts
        x = x.swapaxes(0, 1).reshape(B * S, self.count * self.size, *x.shape[3:])
        return x[:, : T // S].reshape(B, T, *x.shape[2:])

    def with_sharding_constraint(self, tree: Any) -> Any:
        """Pinned, or the partitioner forgets inside the loop who has which rows."""
        return (
            tree
            if self.owner.mesh.size == 1
            else jax.lax.with_sharding_constraint(tree, self.owner)
        )


def token_losses(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    mesh: Mesh = ONE_DEVICE,
) -> Float[Array, "b t"]:
    """-log softmax(hidden kernel)[target], nats, float32; a chunk of tokens at a time, recomputed going backward."""
    return _of_logits(
        lambda logits, picked: jax.nn.logsumexp(logits, -1) - picked, hidden, kernel, targets, mesh
    )


def token_scores(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    mesh: Mesh = ONE_DEVICE,
) -> Float[Array, "b t 2"]:
    """The loss of each target, nats, and how far the best logit lies above the target's: 0 where greedy takes it."""

    def scores(logits: Array, picked: Array) -> Array:
        return jnp.stack([jax.nn.logsumexp(logits, -1) - picked, logits.max(-1) - picked], -1)

    return _of_logits(scores, hidden, kernel, targets, mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_loss(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    mesh: Mesh = ONE_DEVICE,
) -> Float[Array, ""]:
    """The sum of w (-log softmax(hidden kernel)[target]), nats; gradients come with it, so no logits are made twice."""
    return (token_losses(hidden, kernel, targets, mesh) * weights).sum()


def _with_gradients(
    hidden: Any, kernel: Any, targets: Any, weights: Any, mesh: Mesh
) -> tuple[Array, tuple]:
    trained = kernel.perturbed
    hidden, kernel, targets, weights = (x.value for x in (hidden, kernel, targets, weights))
    chunks = _Chunks.of(hidden.shape, mesh, _tokens(kernel, mesh))

    def step(total: Any, chunk: tuple[Array, Array, Array]) -> tuple[Any, tuple[Array, Array]]:
        hidden, targets, weights = chunks.with_sharding_constraint(chunk)
        logits, narrow = _logits(hidden, kernel, mesh)
        log_sum = jax.nn.logsumexp(logits, -1, keepdims=True)
        losses = (log_sum - jnp.take_along_axis(logits, targets[..., None], -1))[..., 0]
        hit = targets[..., None] == jnp.arange(kernel.shape[1])[None, None]
        slope = (jnp.exp(logits - log_sum) - hit) * weights[..., None]
        if trained:
            total = mesh.with_sharding_constraint(
                total + jnp.einsum("btd,btv->dv", hidden, slope), name="lm_head.kernel"
            )
        return total, chunks.with_sharding_constraint(
            (losses, (slope @ narrow.T).astype(hidden.dtype))
        )

    total = jnp.zeros(kernel.shape, jnp.float32) if trained else None
    if chunks.count == 1:
        total, (losses, back) = step(total, (hidden, targets, weights))
    else:
        total, out = jax.lax.scan(
            step, total, (chunks.cut(hidden), chunks.cut(targets), chunks.cut(weights))
        )
        losses, back = map(chunks.join, out)
    return (losses * weights).sum(), (
        back,
        total if total is None else total.astype(kernel.dtype),
        losses,
    )


def _scaled(_: Mesh, saved: tuple, scale: Any) -> tuple:
    back, total, losses = jax.tree.map(lambda x: x * scale.astype(x.dtype), saved)
    return back, total, None, losses


weighted_loss.defvjp(_with_gradients, _scaled, symbolic_zeros=True)


def _tokens(kernel: Array, mesh: Mesh) -> int:
    return max(1, CHUNK * mesh.build().shape["tensor"] // kernel.shape[1])


def _logits(hidden: Array, kernel: Array, mesh: Mesh) -> tuple[Array, Array]:
    """Float32 [b, t, V], and the kernel as it was used."""
    # Cast per chunk: the chunks' gradients then add up in the kernel's dtype.
    narrow = mesh.with_sharding_constraint(kernel, name="lm_head.kernel").astype(hidden.dtype)
    return jnp.matmul(hidden, narrow, preferred_element_type=jnp.float32), narrow


def _of_logits(
    function: Callable[[Array, Array], Array],
    hidden: Array,
    kernel: Array,
    targets: Array,
    mesh: Mesh,
) -> Array:
    """`function` of the logits [b, t, V] of a chunk of tokens and of those of the targets [b, t]."""

    def chunk(hidden: Array, targets: Array) -> Array:
        logits, _ = _logits(hidden, kernel, mesh)
        return function(logits, jnp.take_along_axis(logits, targets[..., None], -1)[..., 0])

    return over_chunks(chunk, mesh, _tokens(kernel, mesh), hidden, targets)


def chunked_mlp(mlp: Any, x: Array, places: Array | None, mesh: Mesh) -> Array:
    arrays = (x,) if places is None else (x, places)
    return over_chunks(
        lambda *chunk: mesh.with_sharding_constraint(mlp)(*chunk), mesh, MLP_TOKENS, *arrays
    )


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
    model, shape = bind(config, mesh.reshard_embedding(params)), batch["tokens"].shape
    places = ring_order(jnp.arange(np.prod(shape)).reshape(shape), mesh) if drops(params) else None
    batch = {
        name: ring_order(x, mesh) for name, x in batch.items()
    }  # a sum does not mind the order of its terms
    attend = make_sharded_attention(
        mesh, attention, kernel, rotation, batch["positions"], batch["segment_ids"]
    )
    run_mlp = functools.partial(chunked_mlp, mesh=mesh) if remat != "none" else None
    hidden, _ = model.hidden(
        batch["tokens"], attend, dtype=dtype, remat=remat, places=places, run_mlp=run_mlp
    )
    nats: Any = weighted_loss(
        hidden, model.output_kernel(), batch["targets"], batch["weights"], mesh
    )
    return nats, batch["weights"].sum()
