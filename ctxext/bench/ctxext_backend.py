"""Our side of a match: what the library's own commands run, timed from call to result."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ctxext import loading
from ctxext.attention import Causal
from ctxext.attention.kernels import evaluate
from ctxext.bench.cases import Round, Work
from ctxext.bench.trace import device_seconds
from ctxext.data import Batch
from ctxext.model.generation import GREEDY, decode_states, make_request
from ctxext.model.loss import batch_loss, token_losses
from ctxext.optim import Optim
from ctxext.parallel.mesh import ONE_DEVICE
from ctxext.rope import Unscaled
from ctxext.training.step import make_step

__all__ = ["PARTS", "device", "device_peak", "device_seconds", "version"]

OPTIM = Optim(learning_rate=1e-4, weight_decay=0.0)


def version() -> str:
    """What ran it."""
    return f"jax {jax.__version__}"


def device() -> str:
    """The kind of device, "cpu" if it is none."""
    return jax.devices()[0].device_kind


def device_peak() -> int | None:
    """Peak bytes of an accelerator's own memory."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _timed(
    call: Callable[[], Any], value: Callable[[Any], list[float]]
) -> tuple[float, list[float]]:
    started = time.perf_counter()
    out = jax.block_until_ready(call())
    return time.perf_counter() - started, value(out)


def _step(work: Work, weights: Path) -> Round:
    lm = loading.load(weights)
    tokens = work.input_ids()
    counted = np.ones(tokens.shape, np.float32)
    counted[:, -1] = 0  # nothing follows the last token
    positions = np.broadcast_to(np.arange(work.seq_len, dtype=np.int32), tokens.shape)
    batch = Batch(tokens, np.roll(tokens, -1, 1), counted, positions, np.ones_like(tokens))
    inputs = {name: jnp.asarray(x[None]) for name, x in batch._asdict().items()}
    loss = functools.partial(
        batch_loss,
        config=lm.config,
        attention=Causal(),
        kernel="auto",
        dtype=work.dtype,
        remat=work.remat,
    )
    optimizer, rotation = (
        OPTIM.build(1000),
        Unscaled().rope(lm.config.rope_base(), work.seq_len).rotation(),
    )
    step = make_step(loss, optimizer)
    state = [lm.params, optimizer.init(lm.params)]
    del lm

    def once() -> tuple[float, list[float]]:
        def call() -> Any:
            state[0], state[1], metrics = step(state[0], state[1], inputs, rotation)
            return state, metrics

        return _timed(call, lambda out: [float(out[1]["loss"]), float(out[1]["grad_norm"])])

    return once


def _asked(work: Work, weights: Path, new_tokens: int) -> Callable[[int], Any]:
    lm = loading.load(weights)
    options = dict(
        config=lm.config,
        attention=Causal(),
        kernel="auto",
        dtype=work.dtype,
        mesh=ONE_DEVICE,
        sample=False,
        incremental=False,
    )
    free = np.full((work.batch, 1, new_tokens), -1, np.int32)
    tokens, request = make_request(
        list(work.input_ids()),
        free,
        lm.rotation(work.seq_len + new_tokens),
        (),
        GREEDY,
        size=work.seq_len,
        mesh=ONE_DEVICE,
    )
    return lambda chunk: decode_states(lm.params, tokens, request, new_tokens, chunk, options)


def _prefill(work: Work, weights: Path) -> Round:
    write = _asked(work, weights, 1)

    def value(state: Any) -> list[float]:
        return [float(state.nll[0, 0, 0]), float(state.token[0, 0])]

    return lambda: _timed(lambda: next(write(1)), value)


def _decode(work: Work, weights: Path) -> Round:
    write = _asked(work, weights, work.new_tokens)

    def once() -> tuple[float, list[float]]:
        going = write(work.new_tokens - 1)
        jax.block_until_ready(next(going))
        return _timed(
            lambda: next(going),
            lambda state: np.ravel(state.tokens[:, 0, : work.new_tokens]).tolist(),
        )

    return once


def _attention(work: Work, _: Path) -> Round:
    heads = (work.batch, work.seq_len, work.shape.num_attention_heads, work.shape.head_dim)
    q, k, v, weight = (jnp.asarray(x, work.dtype) for x in work.normal(*[heads] * 4))
    masks = [piece.mask for piece in Causal().pieces()]

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = evaluate("auto", [q], [k], v, masks)
        return (out * weight).astype(jnp.float32).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return lambda: _timed(lambda: gradients(q, k, v), _norms)


def _loss(work: Work, _: Path) -> Round:
    D, V = work.shape.hidden_size, work.shape.vocab_size
    hidden, kernel = (jnp.asarray(x) for x in work.normal((work.batch, work.seq_len, D), (V, D)))
    hidden, kernel, targets = (
        hidden.astype(work.dtype),
        kernel.T * D**-0.5,
        jnp.asarray(work.input_ids()),
    )
    both = jax.jit(jax.grad(lambda h, w: token_losses(h, w, targets).mean(), argnums=(0, 1)))
    return lambda: _timed(lambda: both(hidden, kernel), _norms)


def _norms(gradients: tuple[jax.Array, ...]) -> list[float]:
    return [float(jnp.linalg.norm(x.astype(jnp.float32))) for x in gradients]


PARTS = {
    "step": _step,
    "prefill": _prefill,
    "decode": _decode,
    "attention": _attention,
    "loss": _loss,
}
