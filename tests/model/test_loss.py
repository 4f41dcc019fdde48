"""Cross-entropy in chunks against optax, in values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctxext.model import loss as loss_module
from ctxext.model.loss import token_losses, token_scores
from ctxext.rope import Unscaled
from support import tiny

B = 3
T = 37
D = 16
V = 50


def problem(dtype: str = "float32"):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, T, D)), dtype)
    kernel = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    weights = jnp.asarray(rng.uniform(size=(B, T)), jnp.float32)
    return hidden, kernel, targets, weights


def reference(hidden, kernel, targets):
    return optax.softmax_cross_entropy_with_integer_labels(
        hidden.astype(jnp.float32) @ kernel, targets
    )


def test_the_loss_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch):
    """All at once, one token over a chunk, five chunks, and one token at a time."""
    hidden, kernel, targets, weights = problem()

    def total(function):
        def weighted(hidden, kernel):
            losses = function(hidden, kernel, targets)
            return (losses * weights).sum(), losses

        return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))(hidden, kernel)

    (_, expected), expected_gradients = total(reference)
    for chunk in (2**24, B * V * (T - 1), B * V * 8, 1):
        monkeypatch.setattr(loss_module, "CHUNK", chunk)
        (_, losses), gradients = total(token_losses)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
        for actual, expected_gradient in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(actual, expected_gradient, rtol=1e-5, atol=1e-5)


def test_scores_hold_the_loss_and_show_the_greedy_choice(monkeypatch: pytest.MonkeyPatch):
    """In any chunks: the same losses, and the best logit minus the target's as in float64."""
    hidden, kernel, targets, _ = problem()
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    targets = targets.at[:, ::3].set(jnp.asarray(logits.argmax(-1)[:, ::3], jnp.int32))
    differences = (
        logits.max(-1) - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    )
    for chunk in (2**24, B * V * 8):
        monkeypatch.setattr(loss_module, "CHUNK", chunk)
        scores = token_scores(hidden, kernel, targets)
        np.testing.assert_array_equal(scores[..., 0], token_losses(hidden, kernel, targets))
        np.testing.assert_allclose(scores[..., 1], differences, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(
            np.asarray(scores[..., 1]) == 0, logits.argmax(-1) == np.asarray(targets)
        )


def test_few_logits_at_once(monkeypatch: pytest.MonkeyPatch):
    """No array of [B, T, V] anywhere, forward or backward."""
    monkeypatch.setattr(loss_module, "CHUNK", B * V * 4)
    hidden, kernel, targets, weights = problem()
    step = jax.value_and_grad(lambda h, k: (token_losses(h, k, targets) * weights).sum(), (0, 1))
    text = str(jax.make_jaxpr(step)(hidden, kernel))
    assert f"{B},4,{V}" in text
    assert f"{B},{T},{V}" not in text
    assert f"{B},40,{V}" not in text


def test_bfloat16_gradients_of_many_chunks_add_up_in_float32(monkeypatch: pytest.MonkeyPatch):
    """A bfloat16 sum over 200 equal chunks stalls far below the truth."""
    monkeypatch.setattr(loss_module, "CHUNK", V)
    hidden = jnp.broadcast_to(problem("bfloat16")[0][:1, :1], (1, 600, D))
    kernel = problem()[1]
    targets = jnp.zeros((1, 600), jnp.int32)
    gradient = jax.jit(jax.grad(lambda k: token_losses(hidden, k, targets).sum()))(kernel)
    expected = jax.grad(lambda k: reference(hidden, k, targets).sum())(kernel)
    np.testing.assert_allclose(
        gradient, expected, rtol=0.02, atol=0.02 * float(abs(expected).max())
    )


# One shape, so that the tests below compile one step.
LENGTH = 28


def batch(
    tokens: np.ndarray, segments: np.ndarray | None = None, positions: np.ndarray | None = None
) -> dict:
    """Next-token targets; those in another segment or in padding (0) have weight 0."""
    rows, length = tokens.shape
    segments = np.ones_like(tokens) if segments is None else segments
    if positions is None:
        positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    tokens, segments, positions = (
        np.pad(x, ((0, 0), (0, LENGTH - length))) for x in (tokens, segments, positions)
    )
    inside = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] > 0)
    arrays = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": inside.astype(np.float32),
        "positions": positions[:, :-1],
        "segment_ids": segments[:, :-1],
    }
    return jax.tree.map(jnp.asarray, arrays)


@functools.partial(jax.jit, static_argnames="remat")
def loss_and_gradient(arrays: dict, rotation, remat: str = "none"):
    def loss(params):
        return tiny.loss(params, arrays, rotation, remat=remat)

    return jax.value_and_grad(loss)(tiny.params())


ROTATION = Unscaled().rope(tiny.CONFIG.rope_base(), 64).rotation()


def test_packed_documents_weigh_as_they_do_alone():
    """Two documents and padding in one row: both losses added, and both gradients."""
    first = tiny.tokens(1, 14, 1)
    second = tiny.tokens(1, 9, 2)
    segments = np.array([[1] * 14 + [2] * 9], np.int32)
    positions = np.r_[0:14, 0:9][None].astype(np.int32)
    packed = batch(np.concatenate([first, second], 1), segments, positions)
    assert float(packed["weights"].sum()) == 13 + 8
    together, gradient = loss_and_gradient(packed, ROTATION)
    losses, gradients = zip(
        *(loss_and_gradient(batch(x), ROTATION) for x in (first, second)), strict=True
    )
    np.testing.assert_allclose(together, sum(losses), rtol=1e-6)
    for actual, a, b in zip(*map(jax.tree.leaves, (gradient, *gradients)), strict=True):
        np.testing.assert_allclose(actual, a + b, rtol=1e-4, atol=1e-4 * float(abs(a + b).max()))


def test_batch_loss_and_lm_loss_equal_the_reference():
    tokens = tiny.tokens(1, LENGTH)
    value, _ = loss_and_gradient(batch(tokens), ROTATION)
    logits = tiny.lm(kernel="dense").logits(tokens[:, :-1])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(tiny.lm().loss(tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.check
def test_remat_changes_neither_loss_nor_gradients():
    arrays = batch(tiny.tokens(1, LENGTH))
    value, gradients = loss_and_gradient(arrays, ROTATION)
    for remat in ("attention", "full", "offload"):
        with_remat, gradients_with_remat = loss_and_gradient(arrays, ROTATION, remat=remat)
        np.testing.assert_allclose(value, with_remat, rtol=1e-6)
        trees = (gradients, gradients_with_remat)
        for expected, actual in zip(*map(jax.tree.leaves, trees), strict=True):
            tolerance = 1e-5 * float(abs(expected).max())
            np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)

    def loops(remat: str) -> int:
        function = functools.partial(loss_and_gradient, remat=remat)
        return str(jax.make_jaxpr(function)(arrays, ROTATION)).count("while[")

    # Only full rematerialisation recomputes attention.
    assert loops("none") == loops("attention") < loops("full")
    with pytest.raises(ValueError, match="remat 'some' is not known"):
        loss_and_gradient(arrays, ROTATION, remat="some")
