"""The backend ctxext: what the library's own commands run, timed from call to result."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext import loading
from ctxext.attention import Causal
from ctxext.attention.kernels import evaluate
from ctxext.bench.cases import BenchmarkCase, RunOnce
from ctxext.bench.trace import device_seconds
from ctxext.data import Batch
from ctxext.model.generation import GREEDY, DecodeState, decode_states, make_request
from ctxext.model.loss import batch_loss, token_losses
from ctxext.model.setup import ModelSetup
from ctxext.optim import Optim
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.rope import Unscaled, rotation_at
from ctxext.training.step import make_step

__all__ = ["PARTS", "device", "device_peak", "device_seconds", "version"]

OPTIM = Optim(learning_rate=1e-4, weight_decay=0.0)


def version() -> str:
    """The versions that ran it."""
    return f"jax {jax.__version__}"


def device() -> str:
    """The kind of accelerator, or "cpu"."""
    return jax.devices()[0].device_kind


def device_peak() -> int | None:
    """The peak of an accelerator's own memory in bytes; None on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _timed(
    call: Callable[[], Any], value: Callable[[Any], list[float]]
) -> tuple[float, list[float]]:
    started = time.perf_counter()
    out = jax.block_until_ready(call())
    return time.perf_counter() - started, value(out)


def _product(case: BenchmarkCase, _: Path) -> RunOnce:
    square = (case.seq_len, case.seq_len)
    a, b = (jnp.asarray(x, case.dtype) for x in case.normal(square, square))
    product = jax.jit(jnp.matmul)
    return lambda: _timed(lambda: product(a, b), lambda out: _norms((out,)))


def _step(case: BenchmarkCase, weights: Path) -> RunOnce:
    lm = loading.load(weights)
    tokens = case.input_ids()
    weights_of_targets = np.ones(tokens.shape, np.float32)
    weights_of_targets[:, -1] = 0  # nothing follows the last token
    positions = np.broadcast_to(np.arange(case.seq_len, dtype=np.int32), tokens.shape)
    batch = Batch(
        tokens, np.roll(tokens, -1, 1), weights_of_targets, positions, np.ones_like(tokens)
    )
    inputs = {name: jnp.asarray(x[None]) for name, x in batch._asdict().items()}
    loss = functools.partial(
        batch_loss,
        config=lm.config,
        attention=Causal(),
        kernel="auto",
        dtype=case.dtype,
        remat=case.remat,
    )
    optimizer = OPTIM.build(1000)
    rotation = rotation_at(Unscaled(), lm.config.rope_base(), case.seq_len)
    step = make_step(loss, optimizer)
    state = [lm.params, optimizer.init(lm.params)]
    del lm

    def run_once() -> tuple[float, list[float]]:
        def call() -> Any:
            state[0], state[1], metrics = step(state[0], state[1], inputs, rotation)
            return state, metrics

        return _timed(call, lambda out: [float(out[1]["loss"]), float(out[1]["grad_norm"])])

    return run_once


def _decoder(
    case: BenchmarkCase, weights: Path, new_tokens: int
) -> Callable[[int], Iterator[DecodeState]]:
    """Starts greedy decoding of the prompts; its argument is the tokens per chunk."""
    lm = loading.load(weights)
    setup = ModelSetup(lm.config, Causal(), "auto", case.dtype, ONE_DEVICE)
    forced = np.full((case.batch, 1, new_tokens), -1, np.int32)  # no token is forced
    tokens, request = make_request(
        list(case.input_ids()),
        forced,
        lm.rotation(case.seq_len + new_tokens),
        (),
        GREEDY,
        size=case.seq_len,
        mesh=ONE_DEVICE,
    )

    def decode(chunk: int) -> Iterator[DecodeState]:
        return decode_states(
            lm.params, tokens, request, setup, longest=case.seq_len, steps=new_tokens, chunk=chunk
        )

    return decode


def _prefill(case: BenchmarkCase, weights: Path) -> RunOnce:
    decode = _decoder(case, weights, 1)

    def value(state: Any) -> list[float]:
        return [float(state.nll[0, 0, 0]), float(state.token[0, 0])]

    return lambda: _timed(lambda: next(decode(1)), value)


def _decode(case: BenchmarkCase, weights: Path) -> RunOnce:
    decode = _decoder(case, weights, case.new_tokens)

    def value(state: Any) -> list[float]:
        return np.ravel(state.tokens[:, 0, : case.new_tokens]).tolist()

    def run_once() -> tuple[float, list[float]]:
        states = decode(case.new_tokens - 1)
        jax.block_until_ready(next(states))  # the prefill and the first token
        return _timed(lambda: next(states), value)

    return run_once


def _attention(case: BenchmarkCase, _: Path) -> RunOnce:
    heads = (case.batch, case.seq_len, case.shape.num_attention_heads, case.shape.head_dim)
    q, k, v, weight = (jnp.asarray(x, case.dtype) for x in case.normal(*[heads] * 4))
    masks = [piece.mask for piece in Causal().pieces(1024)]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = evaluate("auto", [q], [k], v, masks)
        return (out * weight).astype(jnp.float32).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return lambda: _timed(lambda: gradients(q, k, v), _norms)


def _loss(case: BenchmarkCase, _: Path) -> RunOnce:
    D, V = case.shape.hidden_size, case.shape.vocab_size
    hidden, kernel = (jnp.asarray(x) for x in case.normal((case.batch, case.seq_len, D), (V, D)))
    hidden = hidden.astype(case.dtype)
    kernel = kernel.T * D**-0.5
    targets = jnp.asarray(case.input_ids())
    gradients = jax.jit(jax.grad(lambda h, w: token_losses(h, w, targets).mean(), argnums=(0, 1)))
    return lambda: _timed(lambda: gradients(hidden, kernel), _norms)


def _norms(gradients: tuple[jax.Array, ...]) -> list[float]:
    return [float(jnp.linalg.norm(x.astype(jnp.float32))) for x in gradients]


PARTS = {
    "product": _product,
    "step": _step,
    "prefill": _prefill,
    "decode": _decode,
    "attention": _attention,
    "loss": _loss,
}
