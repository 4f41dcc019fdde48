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
STATIC = ("config", "attention", "kernel", "dtype", "mesh", "num_slots", "max_new_tokens", "sample", "incremental")


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
    num_slots: int,
    max_new_tokens: int,
    sample: bool,
    incremental: bool,
) -> Int[Array, "b m"]:
    """New tokens for right-padded prompts; a row that met a `stop` id repeats it. -1 in `stop` matches nothing.

    With `incremental`, every leaf of `rotations` has a leading axis: the prompt's frequencies, then each step's.
    """
    B, T = tokens.shape
    model, rows = bind(config, params), jnp.arange(tokens.shape[0])
    rotated = caches_rotated(attention, incremental=incremental)

    def rotation(step: Array | int) -> Rotation | Float32Rotation:
        return jax.tree.map(lambda x: x[step], rotations) if incremental else rotations

    def choose(hidden: Float[Array, "b d"], step: Array | int) -> Int[Array, " b"]:
        logits = model.logits(hidden[:, None])[:, 0]
        if not sample:
            return jnp.argmax(logits, -1).astype(jnp.int32)
        return sample_token(logits, jax.random.fold_in(key, step), temperature, top_p).astype(jnp.int32)

    shape = (config.num_hidden_layers, B, num_slots, config.num_key_value_heads, config.head_dim)
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    attend = prefill(attention, kernel, rotation(0), positions, rotated=rotated)
    attend = over_devices(attend, mesh, whole=True)
    hidden, cache = model.hidden(tokens, attend, empty_cache(shape, dtype), dtype=dtype)
    token = choose(hidden[rows, lengths - 1], 0)
    output = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(token)

    def unfinished(state: tuple) -> Array:
        step, _, _, _, done = state
        return (step < max_new_tokens) & ~done.all()

    def body(state: tuple) -> tuple:
        step, token, cache, output, done = state
        attend = decode(attention, rotation(step), lengths + step - 1, num_slots, rotated=rotated)
        attend = over_devices(attend, mesh, whole=True)
        hidden, cache = model.hidden(token[:, None], attend, cache, dtype=dtype)
        following = jnp.where(done, token, choose(hidden[:, 0], step))
        done = done | (following[:, None] == stop[None]).any(-1)
        return step + 1, following, cache, output.at[:, step].set(following), done

    done = (token[:, None] == stop[None]).any(-1)
    step, token, _, output, _ = jax.lax.while_loop(unfinished, body, (1, token, cache, output, done))
    rest = jnp.arange(max_new_tokens)[None] >= step  # the loop ended early: every row repeats its stop id
    return jnp.where(rest, token[:, None], output)
