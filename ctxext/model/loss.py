"""Next-token cross-entropy that never holds the logits [B, T, V] of a long T.

Losses are negative log-likelihoods (nll) in nats, float32.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ctxext.attention import Attend, Attention, Causal, Kernel
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Params, bind, has_dropout
from ctxext.model.setup import ModelSetup
from ctxext.parallel.attention import make_sharded_attention, ring_order, token_order
from ctxext.parallel.mesh import ONE_DEVICE, ROWS, Mesh
from ctxext.rope_by_length import SequenceRotation

CHUNK = 2**24
"""Logits that one device holds at a time, in elements."""
MLP_TOKENS = 4096
"""Tokens per device whose MLP activations the backward pass holds at a time."""


def over_chunks(function: Callable[..., Array], mesh: Mesh, tokens: int, *arrays: Array) -> Array:
    """`function` of arrays [B, T, ...], about `tokens` tokens per device at a time.

    The backward pass recomputes it. Every device takes its chunks from its own part of B and T.
    """
    chunks = _Chunks.of(arrays[0].shape, mesh, tokens)
    function = jax.checkpoint(function)
    if chunks.count == 1:
        return function(*arrays)

    def on_chunk(chunk: tuple[Array, ...]) -> Array:
        return chunks.with_sharding_constraint(function(*chunks.with_sharding_constraint(chunk)))

    return chunks.join(jax.lax.map(on_chunk, tuple(map(chunks.cut, arrays))))


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """How arrays [B, T, ...] are cut into `count` arrays [B * S, size, ...], S devices along T.

    The last chunk is padded.
    """

    shape: tuple[int, int]
    seq_shards: int
    count: int
    size: int
    sharding: NamedSharding

    @classmethod
    def of(cls, shape: tuple[int, ...], mesh: Mesh, tokens: int) -> "_Chunks":
        """Cut so that each device has about `tokens` tokens per chunk."""
        B, T = shape[:2]
        row_shards = mesh.row_shards
        built = mesh.build()
        S = built.shape["seq"]
        tokens_per_row = max(1, tokens * row_shards // B)
        count = -(-(T // S) // tokens_per_row)
        size = -(-(T // S) // count)
        spec = PartitionSpec((*ROWS, "seq") if B % row_shards == 0 else None)
        return cls((B, T), S, count, size, NamedSharding(built, spec))

    def cut(self, x: Array) -> Array:
        """[B, T, ...] -> [count, B * S, size, ...]."""
        (B, T), S = self.shape, self.seq_shards
        x = x.reshape(B * S, T // S, *x.shape[2:])
        x = jnp.pad(x, ((0, 0), (0, self.count * self.size - T // S), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(B * S, self.count, self.size, *x.shape[2:]).swapaxes(0, 1)

    def join(self, x: Array) -> Array:
        """The inverse of `cut`."""
        (B, T), S = self.shape, self.seq_shards
        x = x.swapaxes(0, 1).reshape(B * S, self.count * self.size, *x.shape[3:])
        return x[:, : T // S].reshape(B, T, *x.shape[2:])

    def with_sharding_constraint(self, tree: Any) -> Any:
        """The tree with its rows where they are; in a loop the partitioner loses track of that."""
        if self.sharding.mesh.size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.sharding)


def token_losses(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    mesh: Mesh = ONE_DEVICE,
) -> Float[Array, "b t"]:
    """-log softmax(hidden kernel)[target], a chunk of tokens at a time."""

    def losses(logits: Array, target_logits: Array) -> Array:
        return jax.nn.logsumexp(logits, -1) - target_logits

    return _of_logits(losses, hidden, kernel, targets, mesh)


def token_scores(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    mesh: Mesh = ONE_DEVICE,
) -> Float[Array, "b t 2"]:
    """Each target's loss, and by how much the best logit exceeds its logit.

    The difference is 0 where greedy decoding picks the target.
    """

    def scores(logits: Array, target_logits: Array) -> Array:
        losses = jax.nn.logsumexp(logits, -1) - target_logits
        return jnp.stack([losses, logits.max(-1) - target_logits], -1)

    return _of_logits(scores, hidden, kernel, targets, mesh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def weighted_loss(
    hidden: Float[Array, "b t d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    weights: Float[Array, "b t"],
    mesh: Mesh = ONE_DEVICE,
) -> Float[Array, ""]:
    """The sum of w (-log softmax(hidden kernel)[target]).

    Under differentiation the forward pass computes the gradients too, so that no logits are
    computed twice.
    """
    return (token_losses(hidden, kernel, targets, mesh) * weights).sum()


def _loss_and_gradients(
    hidden: Any, kernel: Any, targets: Any, weights: Any, mesh: Mesh
) -> tuple[Array, tuple]:
    kernel_is_trained = kernel.perturbed
    hidden, kernel, targets, weights = (x.value for x in (hidden, kernel, targets, weights))
    chunks = _Chunks.of(hidden.shape, mesh, _tokens_per_chunk(kernel, mesh))

    def step(kernel_grad: Any, chunk: tuple[Array, Array, Array]) -> tuple[Any, tuple]:
        hidden, targets, weights = chunks.with_sharding_constraint(chunk)
        logits, cast_kernel = _logits(hidden, kernel, mesh)
        lse = jax.nn.logsumexp(logits, -1, keepdims=True)
        losses = (lse - jnp.take_along_axis(logits, targets[..., None], -1))[..., 0]
        is_target = targets[..., None] == jnp.arange(kernel.shape[1])[None, None]
        logits_grad = (jnp.exp(logits - lse) - is_target) * weights[..., None]
        if kernel_is_trained:
            kernel_grad = mesh.with_sharding_constraint(
                kernel_grad + jnp.einsum("btd,btv->dv", hidden, logits_grad), name="lm_head.kernel"
            )
        hidden_grad = (logits_grad @ cast_kernel.T).astype(hidden.dtype)
        return kernel_grad, chunks.with_sharding_constraint((losses, hidden_grad))

    kernel_grad = jnp.zeros(kernel.shape, jnp.float32) if kernel_is_trained else None
    if chunks.count == 1:
        kernel_grad, (losses, hidden_grad) = step(kernel_grad, (hidden, targets, weights))
    else:
        inputs = (chunks.cut(hidden), chunks.cut(targets), chunks.cut(weights))
        kernel_grad, outputs = jax.lax.scan(step, kernel_grad, inputs)
        losses, hidden_grad = map(chunks.join, outputs)
    if kernel_grad is not None:
        kernel_grad = kernel_grad.astype(kernel.dtype)
    return (losses * weights).sum(), (hidden_grad, kernel_grad, losses)


def _scale_gradients(_: Mesh, saved: tuple, scale: Any) -> tuple:
    hidden_grad, kernel_grad, losses = jax.tree.map(lambda x: x * scale.astype(x.dtype), saved)
    return hidden_grad, kernel_grad, None, losses


weighted_loss.defvjp(_loss_and_gradients, _scale_gradients, symbolic_zeros=True)


def _tokens_per_chunk(kernel: Array, mesh: Mesh) -> int:
    """Tokens whose logits over the vocabulary fill one chunk per device."""
    return max(1, CHUNK * mesh.build().shape["tensor"] // kernel.shape[1])


def _logits(hidden: Array, kernel: Array, mesh: Mesh) -> tuple[Array, Array]:
    """Logits, float32 [b, t, V], and the kernel in the dtype in which it was used."""
    # Cast per chunk: the gradients of the chunks then add up in the kernel's dtype.
    kernel = mesh.with_sharding_constraint(kernel, name="lm_head.kernel").astype(hidden.dtype)
    return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32), kernel


def _of_logits(
    function: Callable[[Array, Array], Array],
    hidden: Array,
    kernel: Array,
    targets: Array,
    mesh: Mesh,
) -> Array:
    """`function` of the logits [b, t, V] of each chunk and of the targets' logits [b, t]."""

    def of_chunk(hidden: Array, targets: Array) -> Array:
        logits, _ = _logits(hidden, kernel, mesh)
        return function(logits, jnp.take_along_axis(logits, targets[..., None], -1)[..., 0])

    return over_chunks(of_chunk, mesh, _tokens_per_chunk(kernel, mesh), hidden, targets)


def chunked_mlp(mlp: Any, x: Array, token_indices: Array | None, mesh: Mesh) -> Array:
    """Apply an MLP to about MLP_TOKENS tokens per device at a time."""

    def of_chunk(*chunk: Array) -> Array:
        return mesh.with_sharding_constraint(mlp)(*chunk)

    arrays = (x,) if token_indices is None else (x, token_indices)
    return over_chunks(of_chunk, mesh, MLP_TOKENS, *arrays)


@dataclasses.dataclass(frozen=True)
class Forward:
    """The model of a training step, ready to run on batches [B, T] in the order of the text.

    The tokens of hidden states are in `ring_order`, everything else is in the order of the text.
    """

    params: Params
    rotation: SequenceRotation
    """The frequencies of the batch."""
    setup: ModelSetup
    remat: str
    teacher: Params | None = None
    """The parameters of the frozen base, for a loss that `has_teacher`."""

    @functools.cached_property
    def _model(self) -> Any:
        return bind(self.setup.config, self.setup.mesh.reshard_embedding(self.params))

    def without_gradient(self) -> "Forward":
        """The same model with constants for parameters."""
        return dataclasses.replace(self, params=jax.lax.stop_gradient(self.params))

    def of_teacher(self) -> "Forward":
        """The frozen base with plain attention, for a loss that `has_teacher`, without gradient."""
        assert self.teacher is not None
        return dataclasses.replace(
            self,
            params=jax.lax.stop_gradient(self.teacher),
            setup=dataclasses.replace(self.setup, attention=Causal()),
            teacher=None,
        )

    def hidden(
        self,
        batch: Mapping[str, Array],
        *,
        rotation: SequenceRotation | None = None,
        token_indices: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states after the final norm of `batch`: tokens, positions and segment_ids.

        rotation: other frequencies than the batch's. token_indices: the numbers of the tokens in
        the microbatch, by which adapters drop inputs; by default they are counted row by row.
        """
        tokens, attend, options = self._inputs(batch, rotation, token_indices)
        hidden, _ = self._model.hidden(tokens, attend, **options)
        return hidden

    def hidden_of_layers(
        self,
        batch: Mapping[str, Array],
        numbers: tuple[int, ...],
        *,
        rotation: SequenceRotation | None = None,
    ) -> tuple[Float[Array, "b t d"], ...]:
        """The outputs of some layers by number, as `Llama.hidden_of_layers`; else as `hidden`."""
        tokens, attend, options = self._inputs(batch, rotation, None)
        return self._model.hidden_of_layers(tokens, attend, numbers, **options)

    def _inputs(
        self,
        batch: Mapping[str, Array],
        rotation: SequenceRotation | None,
        token_indices: Int[Array, "b t"] | None,
    ) -> tuple[Array, Attend, dict[str, Any]]:
        """The tokens, attention and options that the model runs a batch with."""
        setup = self.setup
        mesh = setup.mesh
        if not has_dropout(self.params):
            token_indices = None
        elif token_indices is None:
            shape = batch["tokens"].shape
            token_indices = jnp.arange(np.prod(shape)).reshape(shape)
        if token_indices is not None:
            token_indices = ring_order(token_indices, mesh)
        tokens, positions, segment_ids = (
            ring_order(batch[name], mesh) for name in ("tokens", "positions", "segment_ids")
        )
        attend = make_sharded_attention(
            mesh,
            setup.attention,
            setup.kernel,
            self.rotation if rotation is None else rotation,
            positions,
            segment_ids,
            layers=setup.config.layers,
        )
        run_mlp = functools.partial(chunked_mlp, mesh=mesh) if self.remat != "none" else None
        return (
            tokens,
            attend,
            {
                "dtype": setup.dtype,
                "remat": self.remat,
                "token_indices": token_indices,
                "run_mlp": run_mlp,
            },
        )

    def in_order(self, x: Array) -> Array:
        """[B, T, ...] with the tokens in the order of hidden states."""
        return ring_order(x, self.setup.mesh)

    def weighted_loss(
        self,
        hidden: Float[Array, "b t d"],
        targets: Int[Array, "b t"],
        weights: Float[Array, "b t"],
    ) -> Float[Array, ""]:
        """The sum of w (-log p(target)) over the tokens of `hidden`."""
        mesh = self.setup.mesh
        # Any order of the tokens will do: the loss is a sum.
        targets = ring_order(targets, mesh)
        weights = ring_order(weights, mesh)
        return weighted_loss(hidden, self._model.output_kernel(), targets, weights, mesh)

    def token_losses(
        self, hidden: Float[Array, "b t d"], targets: Int[Array, "b t"]
    ) -> Float[Array, "b t"]:
        """-log p(target) of every token."""
        mesh = self.setup.mesh
        kernel = self._model.output_kernel()
        return token_order(token_losses(hidden, kernel, ring_order(targets, mesh), mesh), mesh)


def batch_loss(
    params: Params,
    batch: Mapping[str, Array],
    rotation: SequenceRotation,
    *,
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    remat: str,
    mesh: Mesh = ONE_DEVICE,
) -> tuple[Array, dict[str, Array]]:
    """(sum of weighted losses, {"weight": their sum}) of a batch: the fields of `data.Batch`."""
    setup = ModelSetup(config, attention, kernel, dtype, mesh)
    forward = Forward(params, rotation, setup, remat)
    hidden = forward.hidden(batch)
    nll = forward.weighted_loss(hidden, batch["targets"], batch["weights"])
    return nll, {"weight": batch["weights"].sum()}
