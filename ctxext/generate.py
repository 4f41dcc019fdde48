"""Decoding: one compiled prefill and loop, greedy or sampled.

Two semantics for scalings that depend on the length: `frozen` (one set of frequencies for the whole call, cached
decoding equals recomputing) and `incremental` (the frequencies of step t are those of the length at step t; deeper
layers' cached states keep the older ones, as in any cache).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ctxext.attention import Attention, Kernel
from ctxext.attention.cache import caches_rotated, decode, empty_cache, prefill
from ctxext.config import LlamaConfig
from ctxext.model import Params, bind
from ctxext.rope import Float32Rotation, Rotation
from ctxext.sharding import Mesh, over_devices

Semantics = Literal["frozen", "incremental"]
STATIC = ("config", "attention", "kernel", "dtype", "mesh", "sample", "incremental")


def sample_token(
    logits: Float[Array, "b v"], key: Array, temperature: Float[Array, ""], top_p: Float[Array, ""]
) -> Int[Array, " b"]:
    """Draw from softmax(logits / temperature), cut to the smallest set of probability >= top_p (arXiv 1904.09751)."""
    logits = logits / temperature
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(logits, order, -1)
    probability = jax.nn.softmax(ordered, -1)
    before = jnp.cumsum(probability, -1) - probability
    kept = jnp.where(before < top_p, ordered, -jnp.inf)  # the most likely token always stays
    choice = jax.random.categorical(key, kept, axis=-1)
    return jnp.take_along_axis(order, choice[:, None], -1)[:, 0]


@functools.partial(jax.jit, static_argnames=STATIC)
def generate(
    params: Params,
    tokens: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    given: Int[Array, "b k n"],
    steps: Int[Array, ""],
    rotations: Rotation | Float32Rotation,
    key: Array,
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    stop: Int[Array, " e"],
    *,
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    mesh: Mesh,
    sample: bool,
    incremental: bool,
) -> tuple[Int[Array, "b k n"], Float[Array, "b k n"]]:
    """The first `steps` of n new tokens of k branches for right-padded prompts, and -log p of each, nats.

    Branches share the prompt and its cache and do not see each other. Where `given` is not -1 it is the token, whatever
    the model would have said. A branch that met a `stop` id of its own repeats it, for nothing; -1 in `stop` matches
    nothing. With `incremental`, every leaf of `rotations` has a leading axis: the prompt's frequencies, then those of
    each step.
    """
    (B, T), (_, K, N) = tokens.shape, given.shape
    model = bind(config, params)
    rotated = caches_rotated(attention, incremental=incremental)

    def rotation(step: Array | int) -> Rotation | Float32Rotation:
        return jax.tree.map(lambda x: x[step], rotations) if incremental else rotations

    def choose(hidden: Float[Array, "b #k d"], step: Array | int) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
        logits = jnp.broadcast_to(model.logits(hidden), (B, K, config.vocab_size))
        if sample:
            flat = logits.reshape(B * K, -1)
            token = sample_token(flat, jax.random.fold_in(key, step), temperature, top_p).reshape(B, K)
        else:
            token = jnp.argmax(logits, -1)
        token = jnp.where(given[:, :, step] < 0, token, given[:, :, step]).astype(jnp.int32)
        picked = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
        return token, jax.nn.logsumexp(logits, -1) - picked

    def stopped(token: Int[Array, "b k"], step: Array | int) -> Array:
        return (token[..., None] == stop[None, None]).any(-1) & (given[:, :, step] < 0)

    shape = (config.num_hidden_layers, B, T + K * N, config.num_key_value_heads, config.head_dim)
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    attend = prefill(attention, kernel, rotation(0), positions, rotated=rotated)
    attend = over_devices(attend, mesh, whole=True)
    hidden, cache = model.hidden(tokens, attend, empty_cache(shape, dtype), dtype=dtype)
    token, nats = choose(hidden[jnp.arange(B), lengths - 1][:, None], 0)
    output, losses = jnp.zeros((B, K, N), jnp.int32), jnp.zeros((B, K, N), jnp.float32)

    def unfinished(state: tuple) -> Array:
        step, *_, done = state
        return (step < steps) & ~done.all()

    def body(state: tuple) -> tuple:
        step, token, cache, output, losses, done = state
        attend = decode(attention, rotation(step), lengths, step - 1, prompt_slots=T, branches=K,
                        num_slots=shape[2], rotated=rotated)  # fmt: skip
        attend = over_devices(attend, mesh, whole=True)
        hidden, cache = model.hidden(token, attend, cache, dtype=dtype)
        following, nats = choose(hidden, step)
        following, nats = jnp.where(done, token, following), jnp.where(done, 0, nats)
        output, losses = output.at[:, :, step].set(following), losses.at[:, :, step].set(nats)
        return step + 1, following, cache, output, losses, done | stopped(following, step)

    first = (1, token, cache, output.at[:, :, 0].set(token), losses.at[:, :, 0].set(nats), stopped(token, 0))
    step, token, _, output, losses, _ = jax.lax.while_loop(unfinished, body, first)
    rest = jnp.arange(N)[None, None] >= step  # the loop ended early: every branch repeats its stop id
    return jnp.where(rest, token[..., None], output), losses
