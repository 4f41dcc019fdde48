"""Decoding: a compiled prefill and a compiled loop that goes on from any state, greedy or sampled.

Two semantics for scalings that depend on the length: `frozen` (one set of frequencies for the whole call, cached
decoding equals recomputing) and `incremental` (the frequencies of step t are those of the length at step t; deeper
layers' cached states keep the older ones, as in any cache).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctxext.attention import Attention, Kernel
from ctxext.attention.cache import Cache, caches_rotated, decode, empty_cache, prefill
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import Llama, Params, bind
from ctxext.model.segments import layers_apart, segment_sizes
from ctxext.parallel.attention import shard_attention
from ctxext.parallel.distributed import gather
from ctxext.parallel.mesh import Mesh
from ctxext.rope import Float32Rotation, Rotation

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


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn, see `sample_token`; temperature 0: the most likely. Raises ValueError outside the range."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"need temperature >= 0 and 0 < top_p <= 1, got {self.temperature} and {self.top_p}"
            )


GREEDY = Sampling()


class Asked(NamedTuple):
    """What to write behind right-padded prompts: n new tokens of k continuations each, fixed for a whole call.

    Continuation share the prompt and its cache and do not see each other. Where `given` is not -1 it is the token, whatever
    the model would have said. -1 in `stop` matches nothing. With `incremental`, every leaf of `rotations` has a leading
    axis: the prompt's frequencies, then those of each step.
    """

    lengths: Int[Array, " b"]
    given: Int[Array, "b k n"]
    rotations: Rotation | Float32Rotation
    key: Array
    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    stop: Int[Array, " e"]


class State(NamedTuple):
    """After `step` tokens: the last ones, the segments' caches, all tokens and -log p of each in nats, who is done."""

    step: Int[Array, ""]
    token: Int[Array, "b k"]
    caches: tuple[Cache, ...]
    tokens: Int[Array, "b k n"]
    nats: Float[Array, "b k n"]
    done: Array


def ask(
    prompts: Sequence[np.ndarray],
    given: np.ndarray,
    rotations: Any,
    stop: Any,
    sampling: Sampling,
    *,
    size: int,
    mesh: Mesh,
) -> tuple[jax.Array, Asked]:
    """The prompts padded to `size` tokens, and the rest; padded as well, so that few programs are compiled."""
    tokens = np.stack([np.pad(row, (0, size - len(row))) for row in prompts])
    lengths = np.array([len(row) for row in prompts], np.int32)
    given = np.pad(given, ((0, 0), (0, 0), (0, -given.shape[-1] % 32)), constant_values=-1)
    ids = np.full(-(-max(len(stop), 1) // 4) * 4, -1, np.int32)
    ids[: len(stop)] = stop
    return mesh.rows(tokens), Asked(
        mesh.rows(lengths),
        mesh.rows(given),
        rotations,
        jax.random.key(sampling.seed),
        jnp.float32(sampling.temperature or 1.0),
        jnp.float32(sampling.top_p),
        jnp.asarray(ids),
    )


def states(
    params: Params, tokens: jax.Array, asked: Asked, steps: int, chunk: int, options: dict[str, Any]
) -> Iterator[State]:
    """The state after one token and after each `chunk` more, until all are done; once if `chunk` is all of `steps`."""
    params = layers_apart(params)
    state = begin(params, tokens, asked, **options)
    for until in [steps] if chunk >= steps else [1, *range(1 + chunk, steps, chunk), steps]:
        state = advance(params, state, asked, jnp.int32(until), **options)
        yield state
        if gather(state.done).all():
            return


@functools.partial(jax.jit, static_argnames=STATIC)
def begin(
    params: Params,
    tokens: Int[Array, "b t"],
    asked: Asked,
    *,
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    mesh: Mesh,
    sample: bool,
    incremental: bool,
) -> State:
    """Read the prompts and write the first token of every continuation."""
    (B, T), (_, K, N) = tokens.shape, asked.given.shape
    model = bind(config, params)
    shape = (B, config.num_key_value_heads, T + K * N, config.head_dim)
    caches = tuple(empty_cache(size, shape, dtype) for size in segment_sizes(params))
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    rotated = caches_rotated(attention, incremental=incremental)
    attend = prefill(
        attention, kernel, _rotation(asked, 0, incremental), positions, rotated=rotated
    )
    attend = shard_attention(attend, mesh, whole=True)
    hidden, caches = model.hidden(tokens, attend, caches, dtype=dtype)
    token, nats = _choose(
        model, hidden[jnp.arange(B), asked.lengths - 1][:, None], asked, 0, sample
    )
    written, losses = jnp.zeros((B, K, N), jnp.int32), jnp.zeros((B, K, N), jnp.float32)
    return State(
        jnp.int32(1),
        token,
        caches,
        written.at[:, :, 0].set(token),
        losses.at[:, :, 0].set(nats),
        _stopped(asked, token, 0),
    )


@functools.partial(jax.jit, static_argnames=STATIC, donate_argnames="state")
def advance(
    params: Params,
    state: State,
    asked: Asked,
    until: Int[Array, ""],
    *,
    config: LlamaConfig,
    attention: Attention,
    kernel: Kernel,
    dtype: str,
    mesh: Mesh,
    sample: bool,
    incremental: bool,
) -> State:
    """Go on to `until` tokens, which compiles nothing anew, or until every continuation is done; `state` is used up.

    A continuation that met a `stop` id of its own repeats it, for nothing; behind the last step its last token is repeated.
    """
    model = bind(config, params)
    (_, K, N), slots = asked.given.shape, state.caches[0].keys.shape[-2]
    rotated = caches_rotated(attention, incremental=incremental)

    def unfinished(state: State) -> Array:
        return (state.step < until) & ~state.done.all()

    def body(state: State) -> State:
        step, token, done = state.step, state.token, state.done
        attend = decode(
            attention,
            _rotation(asked, step, incremental),
            asked.lengths,
            step - 1,
            prompt_slots=slots - K * N,
            continuations=K,
            num_slots=slots,
            rotated=rotated,
        )
        attend = shard_attention(attend, mesh, whole=True)
        hidden, caches = model.hidden(token, attend, state.caches, dtype=dtype)
        following, nats = _choose(model, hidden, asked, step, sample)
        following, nats = jnp.where(done, token, following), jnp.where(done, 0, nats)
        return State(
            step + 1,
            following,
            caches,
            state.tokens.at[:, :, step].set(following),
            state.nats.at[:, :, step].set(nats),
            done | _stopped(asked, following, step),
        )

    state = jax.lax.while_loop(unfinished, body, state)
    rest = jnp.arange(N)[None, None] >= state.step
    return state._replace(tokens=jnp.where(rest, state.token[..., None], state.tokens))


def _rotation(asked: Asked, step: Array | int, incremental: bool) -> Any:
    return jax.tree.map(lambda x: x[step], asked.rotations) if incremental else asked.rotations


def _choose(
    model: Llama, hidden: Float[Array, "b #k d"], asked: Asked, step: Array | int, sample: bool
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    given = asked.given[:, :, step]
    logits = model.logits(hidden)
    logits = jnp.broadcast_to(logits, (*given.shape, logits.shape[-1]))
    if sample:
        flat = logits.reshape(-1, logits.shape[-1])
        key = jax.random.fold_in(asked.key, step)
        token = sample_token(flat, key, asked.temperature, asked.top_p).reshape(given.shape)
    else:
        token = jnp.argmax(logits, -1)
    token = jnp.where(given < 0, token, given).astype(jnp.int32)
    picked = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
    return token, jax.nn.logsumexp(logits, -1) - picked


def _stopped(asked: Asked, token: Int[Array, "b k"], step: Array | int) -> Array:
    return (token[..., None] == asked.stop[None, None]).any(-1) & (asked.given[:, :, step] < 0)
