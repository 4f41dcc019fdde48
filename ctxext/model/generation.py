"""Decoding: a compiled prefill, then a compiled loop that continues from any state.

For frequencies and attention that follow the length there are three semantics, `SEMANTICS`. None
depends on how many tokens may be written: a text is a prefix of the longer one that a larger budget
gives.

Shapes: B prompts (rows), K continuations of each, N new tokens, T prompt length, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ctxext.attention.cache import Cache, caches_rotated, empty_cache, prefill
from ctxext.attention.decode import decode
from ctxext.model.decoder import Llama, Params, bind
from ctxext.model.operations import step_operations
from ctxext.model.reading import Reader, chunk_tokens, reading_operations, steps_at_once
from ctxext.model.segments import layers_apart, segment_sizes
from ctxext.model.setup import ModelSetup
from ctxext.model.shared_beginning import SharedBeginning, copied_slots
from ctxext.parallel.attention import shard_attention
from ctxext.parallel.distributed import gather
from ctxext.parallel.mesh import Mesh
from ctxext.progress import Meter
from ctxext.rope import Float32Rotation, Rotation

Semantics = Literal["incremental", "frozen", "transformers"]
SEMANTICS: dict[Semantics, str] = {
    "incremental": "each new token sees all keys by the method at the length so far",
    "frozen": "each new token sees all keys by the method at the prompt's length",
    "transformers": "each key keeps the frequencies of the length at which it was cached",
}
"""How new tokens are written where frequencies or attention follow the length.

What the method has at a length are the frequencies, and the position maps, scales and slopes of
attention. `incremental` rotates the keys anew at every step, as arXiv 2309.00071 recommends and
Jet-Long does; cached states of deeper layers keep what they were computed with, as in any cache.
Under `frozen`, cached decoding equals recomputing with the method at the prompt's length.
`transformers` repeats what that library does, for `dynamic` and for `longrope`: query and key then
turn by different frequencies. It has no attention that follows the length.
"""
STATIC = ("setup", "sample", "semantics")


def sample_token(
    logits: Float[Array, "b v"], key: Array, temperature: Float[Array, ""], top_p: Float[Array, ""]
) -> Int[Array, " b"]:
    """Draw from softmax(logits / temperature), cut to the nucleus (arXiv 1904.09751).

    The nucleus is the smallest set of tokens whose probability is at least `top_p`.
    """
    logits = logits / temperature
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(logits, order, -1)
    probability = jax.nn.softmax(ordered, -1)
    probability_before = jnp.cumsum(probability, -1) - probability
    # The most likely token always stays: nothing comes before it.
    nucleus = jnp.where(probability_before < top_p, ordered, -jnp.inf)
    choice = jax.random.categorical(key, nucleus, axis=-1)
    return jnp.take_along_axis(order, choice[:, None], -1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, see `sample_token`; temperature 0 takes the most likely one.

    Raises ValueError for values out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"need temperature >= 0 and 0 < top_p <= 1, got {self.temperature} and {self.top_p}"
            )


GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """How many tokens are written, how they are drawn, and which ones end a row.

    Raises ValueError for fewer than one token and for unknown semantics.
    """

    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: tuple[int, ...] = ()
    semantics: Semantics | None = None
    """None: those of the model."""

    def __post_init__(self) -> None:
        if self.semantics not in (None, *SEMANTICS):
            raise ValueError(
                f"semantics {self.semantics!r} is not known; choose one of {', '.join(SEMANTICS)}"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


class DecodeRequest(NamedTuple):
    """The continuations to write after right-padded prompts; the same for a whole call.

    Each prompt gets K continuations of N tokens, which share its cache and do not see each other.
    """

    lengths: Int[Array, " b"]
    """Tokens of each prompt, without the padding."""
    forced_tokens: Int[Array, "b k n"]
    """Tokens to take in place of the model's; -1 where the model chooses."""
    rotations: Rotation | Float32Rotation
    """Unless `frozen`, its leaves have a leading axis: the prompt's frequencies, then each step's.
    """
    key: Array
    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    stop_ids: Int[Array, " e"]
    """A continuation ends after one of these; -1 matches nothing."""


class DecodeState(NamedTuple):
    """The continuations after `step` tokens."""

    step: Int[Array, ""]
    token: Int[Array, "b k"]
    """The last token of each continuation."""
    caches: tuple[Cache, ...]
    """One per segment of the model."""
    tokens: Int[Array, "b k n"]
    nll: Float[Array, "b k n"]
    """-log p of each token, nats."""
    done: Array
    """Which continuations have met a stop id, [B, K]."""


def num_padding(steps: int) -> int:
    """How many steps are added to so many, so that few programs are compiled."""
    return -steps % 32


def make_request(
    prompts: Sequence[np.ndarray],
    forced_tokens: np.ndarray,
    rotations: Any,
    stop_ids: Sequence[int] | np.ndarray,
    sampling: Sampling,
    *,
    size: int,
    mesh: Mesh,
) -> tuple[jax.Array, DecodeRequest]:
    """The prompts padded to [B, `size`], and the request for their continuations.

    The lengths of the request are padded too, so that few programs are compiled.
    """
    tokens = np.stack([np.pad(prompt, (0, size - len(prompt))) for prompt in prompts])
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    padding = ((0, 0), (0, 0), (0, num_padding(forced_tokens.shape[-1])))
    forced_tokens = np.pad(forced_tokens, padding, constant_values=-1)
    padded_ids = np.full(-(-max(len(stop_ids), 1) // 4) * 4, -1, np.int32)
    padded_ids[: len(stop_ids)] = stop_ids
    request = DecodeRequest(
        lengths=mesh.rows(lengths),
        forced_tokens=mesh.rows(forced_tokens),
        rotations=rotations,
        key=jax.random.key(sampling.seed),
        temperature=jnp.float32(sampling.temperature or 1.0),
        top_p=jnp.float32(sampling.top_p),
        stop_ids=jnp.asarray(padded_ids),
    )
    return mesh.rows(tokens), request


def forced(prefixes: Sequence[Sequence[Any]], num_tokens: int) -> np.ndarray:
    """The ids that each continuation of each prompt begins with, [B, K, num_tokens], then -1."""
    tokens = np.full((len(prefixes), len(prefixes[0]), num_tokens), -1, np.int32)
    for b, row in enumerate(prefixes):
        for k, ids in enumerate(row):
            tokens[b, k, : len(ids)] = ids
    return tokens


def decode_states(
    params: Params,
    tokens: jax.Array,
    request: DecodeRequest,
    setup: ModelSetup,
    *,
    longest: int,
    steps: int,
    chunk: int | None = None,
    sample: bool = False,
    semantics: Semantics = "frozen",
    shared: SharedBeginning | None = None,
) -> Iterator[DecodeState]:
    """Yield the state after one token and after each `chunk` more, until all are done.

    If `chunk` is None, or covers all of `steps`, only the final state comes. longest: tokens of the
    longest prompt. sample: whether tokens are drawn. Long prompts are read in parts, and many
    tokens written so, see `reading`. shared: what the continuations begin with, as is forced by the
    request too.
    """
    options = {"setup": setup, "sample": sample, "semantics": semantics}
    params = layers_apart(params)
    B, T = tokens.shape
    _, K, N = request.forced_tokens.shape
    first_request = request if shared is None else _of_beginnings(request, shared, setup)
    first_rows = B * first_request.forced_tokens.shape[1]
    num_shared = 1 if shared is None else shared.tokens.shape[-1]
    part = chunk_tokens(setup, B, T)
    of_reading = B * reading_operations(setup, -(-longest // part) * part if part else T)
    of_shared_step = step_operations(setup.config, first_rows, T + N)
    of_step = step_operations(setup.config, B * K, T + N)
    meter = Meter(of_reading + num_shared * of_shared_step + (steps - num_shared) * of_step)
    reading_options = {"new_slots": K * N, **options}
    if part:
        state = _begin_in_parts(
            params, tokens, first_request, meter, longest, part, **reading_options
        )
    else:
        state = begin(params, tokens, first_request, **reading_options)
        meter.add(of_reading)
    if shared is not None:
        state = advance(
            params, state, first_request, jnp.int32(num_shared), prompt_slots=T, **options
        )
        beginning_of = setup.mesh.rows(shared.beginning_of)
        without_caches = state._replace(caches=())
        state = _separate(state.caches, without_caches, beginning_of, prompt_slots=T)
    meter.add(num_shared * of_shared_step)
    yielded = {steps} if chunk is None else {1, *range(1 + chunk, steps, chunk), steps}
    if chunk is not None and chunk >= steps:
        yielded = {steps}
    at_once = steps_at_once(setup, B * K, T + N)
    ends = sorted(yielded | set(range(num_shared + at_once, steps, at_once)))
    done = num_shared
    for end in ends:
        state = advance(params, state, request, jnp.int32(end), prompt_slots=T, **options)
        is_done = gather(state.done).all()
        meter.add((end - done) * of_step)
        done = end
        if end in yielded or is_done:
            yield state
        if is_done:
            return


def _of_beginnings(
    request: DecodeRequest, shared: SharedBeginning, setup: ModelSetup
) -> DecodeRequest:
    """The request for the shared beginnings, as continuations with room for as many tokens."""
    room = request.forced_tokens.shape[-1] - shared.tokens.shape[-1]
    forced_tokens = np.pad(shared.tokens, ((0, 0), (0, 0), (0, room)), constant_values=-1)
    return request._replace(forced_tokens=setup.mesh.rows(forced_tokens))


@functools.partial(jax.jit, static_argnames="prompt_slots", donate_argnames="caches")
def _separate(
    caches: tuple[Cache, ...],
    state: DecodeState,
    beginning_of: Int[Array, "b k"],
    *,
    prompt_slots: int,
) -> DecodeState:
    """The state of the continuations, from that of their beginnings without its caches."""
    _, num_beginnings, tokens = state.tokens.shape

    def of_continuations(x: Array) -> Array:
        index = beginning_of.reshape(*beginning_of.shape, *(1 for _ in x.shape[2:]))
        return jnp.take_along_axis(x, index, 1)

    where = {"first": prompt_slots, "num_beginnings": num_beginnings, "tokens": tokens}
    return DecodeState(
        step=state.step,
        token=of_continuations(state.token),
        caches=tuple(copied_slots(cache, beginning_of, **where) for cache in caches),
        tokens=of_continuations(state.tokens),
        nll=of_continuations(state.nll),
        done=of_continuations(state.done),
    )


@functools.partial(jax.jit, static_argnames=(*STATIC, "new_slots"))
def begin(
    params: Params,
    tokens: Int[Array, "b t"],
    request: DecodeRequest,
    *,
    new_slots: int,
    setup: ModelSetup,
    sample: bool,
    semantics: Semantics,
) -> DecodeState:
    """Read the prompts and write the first token of every continuation.

    new_slots: of the caches, after those of the prompts.
    """
    B, T = tokens.shape
    model = bind(setup.config, params)
    caches = _empty_caches(params, tokens, new_slots, setup)
    positions = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
    rotated = caches_rotated(setup.attention, re_rotated=semantics == "incremental")
    rotation = _rotation(request, 0, semantics)
    attend = prefill(
        setup.attention,
        setup.kernel,
        rotation,
        positions,
        rotated=rotated,
        layers=setup.config.layers,
    )
    attend = shard_attention(attend, setup.mesh, whole=True)
    hidden, caches = model.hidden(tokens, attend, caches, dtype=setup.dtype)
    last_hidden = hidden[jnp.arange(B), request.lengths - 1][:, None]
    return _first_state(model, last_hidden, caches, request, sample)


def _begin_in_parts(
    params: Params,
    tokens: jax.Array,
    request: DecodeRequest,
    meter: Meter,
    longest: int,
    chunk: int,
    *,
    new_slots: int,
    setup: ModelSetup,
    sample: bool,
    semantics: Semantics,
) -> DecodeState:
    """Equal to `begin`, with a reading in parts."""
    reader = Reader(
        params,
        _rotation(request, 0, semantics),
        meter,
        setup=setup,
        chunk=chunk,
        num_chunks=tokens.shape[1] // chunk,
    )
    xs, caches = reader.hidden(
        reader.cut(tokens, longest),
        _empty_caches(params, tokens, new_slots, setup),
        rotated=caches_rotated(setup.attention, re_rotated=semantics == "incremental"),
    )
    last_hidden = reader.last(xs, np.asarray(request.lengths))
    state = _write_first(params, last_hidden, request, setup=setup, sample=sample)
    return state._replace(caches=caches)


@functools.partial(jax.jit, static_argnames=("setup", "sample"))
def _write_first(
    params: Params,
    last_hidden: Float[Array, "b 1 d"],
    request: DecodeRequest,
    *,
    setup: ModelSetup,
    sample: bool,
) -> DecodeState:
    """The state after the first token, without its caches. last_hidden: before the final norm."""
    model = bind(setup.config, {**params, "segments": {}})
    return _first_state(model, model.norm(last_hidden), (), request, sample)


def _empty_caches(
    params: Params, tokens: Array, new_slots: int, setup: ModelSetup
) -> tuple[Cache, ...]:
    """Caches for the prompts and all of their continuations, one per segment."""
    B, T = tokens.shape
    shape = (B, setup.config.num_key_value_heads, T + new_slots, setup.config.head_dim)
    return tuple(empty_cache(size, shape, setup.dtype) for size in segment_sizes(params))


def _first_state(
    model: Llama,
    last_hidden: Float[Array, "b 1 d"],
    caches: tuple[Cache, ...],
    request: DecodeRequest,
    sample: bool,
) -> DecodeState:
    """The state after the first token of every continuation."""
    B, K, N = request.forced_tokens.shape
    token, nll = _next_token(model, last_hidden, request, 0, sample)
    return DecodeState(
        step=jnp.int32(1),
        token=token,
        caches=caches,
        tokens=jnp.zeros((B, K, N), jnp.int32).at[:, :, 0].set(token),
        nll=jnp.zeros((B, K, N), jnp.float32).at[:, :, 0].set(nll),
        done=_is_stop(request, token, 0),
    )


@functools.partial(jax.jit, static_argnames=(*STATIC, "prompt_slots"), donate_argnames="state")
def advance(
    params: Params,
    state: DecodeState,
    request: DecodeRequest,
    until: Int[Array, ""],
    *,
    prompt_slots: int,
    setup: ModelSetup,
    sample: bool,
    semantics: Semantics,
) -> DecodeState:
    """Write up to `until` tokens, or until every continuation is done; `state` is donated.

    Another `until` compiles nothing. A continuation that has chosen a stop id repeats it at nll 0;
    the tokens after the last step repeat the last one.
    """
    model = bind(setup.config, params)
    _, K, N = request.forced_tokens.shape
    rotated = caches_rotated(setup.attention, re_rotated=semantics == "incremental")

    def unfinished(state: DecodeState) -> Array:
        return (state.step < until) & ~state.done.all()

    def write_one(state: DecodeState) -> DecodeState:
        step = state.step
        attend = decode(
            setup.attention,
            _rotation(request, step, semantics),
            request.lengths,
            step - 1,
            prompt_slots=prompt_slots,
            continuations=K,
            new_tokens=N,
            rotated=rotated,
            layers=setup.config.layers,
        )
        attend = shard_attention(attend, setup.mesh, whole=True)
        hidden, caches = model.hidden(state.token, attend, state.caches, dtype=setup.dtype)
        token, nll = _next_token(model, hidden, request, step, sample)
        token = jnp.where(state.done, state.token, token)
        nll = jnp.where(state.done, 0, nll)
        return DecodeState(
            step=step + 1,
            token=token,
            caches=caches,
            tokens=state.tokens.at[:, :, step].set(token),
            nll=state.nll.at[:, :, step].set(nll),
            done=state.done | _is_stop(request, token, step),
        )

    state = jax.lax.while_loop(unfinished, write_one, state)
    unwritten = jnp.arange(N)[None, None] >= state.step
    return state._replace(tokens=jnp.where(unwritten, state.token[..., None], state.tokens))


def _rotation(request: DecodeRequest, step: Array | int, semantics: Semantics) -> Any:
    if semantics == "frozen":
        return request.rotations
    return jax.tree.map(lambda x: x[step], request.rotations)


def _next_token(
    model: Llama,
    hidden: Float[Array, "b #k d"],
    request: DecodeRequest,
    step: Array | int,
    sample: bool,
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """The token of a step, forced, drawn or most likely, and its -log p in nats."""
    forced = request.forced_tokens[:, :, step]
    logits = model.logits(hidden)
    logits = jnp.broadcast_to(logits, (*forced.shape, logits.shape[-1]))
    if sample:
        flat = logits.reshape(-1, logits.shape[-1])
        key = jax.random.fold_in(request.key, step)
        drawn = sample_token(flat, key, request.temperature, request.top_p)
        chosen = drawn.reshape(forced.shape)
    else:
        chosen = jnp.argmax(logits, -1)
    token = jnp.where(forced < 0, chosen, forced).astype(jnp.int32)
    token_logits = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
    return token, jax.nn.logsumexp(logits, -1) - token_logits


def _is_stop(request: DecodeRequest, token: Int[Array, "b k"], step: Array | int) -> Array:
    """True where the model itself chose a stop id."""
    matches = token[..., None] == request.stop_ids[None, None]
    return matches.any(-1) & (request.forced_tokens[:, :, step] < 0)
