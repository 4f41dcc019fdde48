"""Every attention method reads a document in a packed row as it reads that document alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Attention, Causal
from ctxext.attention.documents import smallest_in_document
from ctxext.attention.kernels import refusal
from ctxext.attention.length import rotation_for
from ctxext.attention.request import Request
from ctxext.methods import LMInfinite, PoSE, S2AttnAsReleased, SelfExtend, method_name
from ctxext.parallel.attention import make_sharded_attention, ring_order, token_order
from ctxext.parallel.mesh import Mesh
from ctxext.rope import RopeBase, Unscaled
from support import tiny
from support.attention_by_definition import by_definition
from support.every_method import EVERY_ATTENTION

T = 320
LENGTHS = np.array([[93, 190, 37], [190, 93, 37]])
"""Tokens of the documents of two packed rows; of the last document, padding."""
SEGMENTS = np.stack([np.repeat([1, 2, 0], row) for row in LENGTHS])
DOCUMENTS = [(row, segment) for row in (0, 1) for segment in (1, 2, 0)]
BASE = RopeBase(head_dim=8, theta=1e4, original_max_position_embeddings=64)
PLAIN = (SelfExtend, LMInfinite)
"""Methods that are tested in `make test`; the others, whose kind `test_whole_seam` covers, only in
`make check`."""


def draw(seed: int, heads: int) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(1.5 * rng.normal(size=(2, T, heads, 8)), jnp.float32)


Q, K, V, WEIGHTS = draw(0, 4), draw(1, 2), draw(2, 2), draw(3, 4)


@functools.partial(jax.jit, static_argnames=("attention", "kernel", "mesh"))
def attend(attention, kernel, mesh, q, k, v, weights, positions, segments) -> Any:
    """(output, gradients of q, k and v)."""

    def total(q, k, v):
        q, k, v = (ring_order(x, mesh) for x in (q, k, v))
        ids = None if segments is None else ring_order(segments, mesh)
        order = ring_order(positions, mesh)
        rotation = rotation_for(Unscaled(), attention, BASE, 1024)
        attend = make_sharded_attention(mesh, attention, kernel, rotation, order, ids)
        out = token_order(attend(q, k, v, None, None)[0], mesh)
        return (out * weights).sum(), out

    (_, out), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    return out, gradients


@functools.cache
def alone(attention: Attention, skipping: bool) -> Any:
    """The same for each document alone, from position 0 on, by the reference kernel."""
    positions = positions_of_rows(skipping)
    arrays = [np.zeros((6, *x.shape[1:]), np.float32) for x in (Q, K, V, WEIGHTS)]
    own_positions = np.zeros((6, T), np.int32)
    # Each in its own row from the beginning: what follows it has no weight, and is not seen.
    for new, (row, segment) in enumerate(DOCUMENTS):
        here = SEGMENTS[row] == segment
        length = here.sum()
        for own, x in zip(arrays, (Q, K, V, WEIGHTS), strict=True):
            own[new, :length] = x[row, here]
        own_positions[new, :length] = positions[row, here] - positions[row, here][0]
    result = attend(attention, "dense", Mesh(), *arrays, own_positions, None)

    def in_rows(own: jax.Array) -> np.ndarray:
        out = np.zeros((2, *own.shape[1:]), np.float32)
        for new, (row, segment) in enumerate(DOCUMENTS):
            here = SEGMENTS[row] == segment
            out[row, here] = own[new, : here.sum()]
        return out

    return jax.tree.map(in_rows, result)


def positions_of_rows(skipping: bool) -> np.ndarray:
    """Running over the documents of a row, or with PoSE's jumps within and between them."""
    if skipping:
        method = PoSE(max_position_embeddings=900, num_chunks=5)
        return method.sample(np.random.default_rng(5), (2, T))
    return np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))


def case(attention: Attention, kernel: str) -> Any:
    """All compile for seconds; `make check` has the ones of which others show the most.

    The ring computes the pieces of a mask as `blocked` does: those of most methods are for `make
    slow`.
    """
    is_slow = kernel != "dense" and not isinstance(attention, LMInfinite)
    marks = [pytest.mark.check] if is_slow or not isinstance(attention, PLAIN) else []
    if kernel == "ring" and not isinstance(attention, PLAIN):
        marks = [pytest.mark.slow]
    return pytest.param(attention, kernel, marks=marks, id=f"{method_name(attention)}-{kernel}")


@pytest.mark.parametrize("skipping", [False, True], ids=["running", "skipping"])
@pytest.mark.parametrize(
    ("attention", "kernel"),
    [
        case(attention, kernel)
        for attention in EVERY_ATTENTION
        for kernel in ("dense", "blocked", "ring")
        # It sees what follows a document: rows of several are not for it.
        if not isinstance(attention, S2AttnAsReleased)
    ],
)
def test_packed_rows_equal_documents_alone_in_values_and_gradients(
    attention: Attention, kernel: str, skipping: bool
):
    mesh = Mesh(seq=2) if kernel == "ring" else Mesh()
    positions = jnp.asarray(positions_of_rows(skipping))
    segments = jnp.asarray(SEGMENTS, jnp.int32)
    packed = attend(attention, kernel, mesh, Q, K, V, WEIGHTS, positions, segments)
    expected = alone(attention, skipping)
    for actual, exact in zip(jax.tree.leaves(packed), jax.tree.leaves(expected), strict=True):
        scale = max(1, abs(exact).max())
        np.testing.assert_allclose(actual, exact, atol=2e-5 * scale, rtol=0)


@pytest.mark.check
def test_logits_of_packed_documents_are_those_of_the_documents():
    """Through the whole model, with positions that run over the row, as `LM.logits` makes them."""
    tokens = tiny.tokens(1, 70)
    lm = tiny.lm(attention=SelfExtend(4, 9))
    packed = np.asarray(lm.logits(tokens, segment_ids=np.repeat([[1, 2]], 35, 1)))
    own = np.concatenate(np.asarray(lm.logits(tokens.reshape(2, 35))))
    np.testing.assert_allclose(packed[0], own, atol=5e-5)


@pytest.mark.parametrize(
    "attention", [x for x in EVERY_ATTENTION if x != Causal()], ids=method_name
)
def test_documents_are_long_enough_to_be_read_in_the_way_of_a_method(attention: Attention):
    """Otherwise it needs settings in CHOSEN_ATTENTION: it would be tested as plain RoPE."""
    length = LENGTHS.min(axis=0)[0]
    x = [np.random.default_rng(0).normal(size=(length, heads, 8)) for heads in (4, 2, 2)]
    own, plain = (
        by_definition(method.pieces(1024), *x, attention=method) for method in (attention, Causal())
    )
    assert abs(own - plain).max() > 1e-3


def test_the_beginning_of_a_document_is_found_in_any_order():
    rng = np.random.default_rng(0)
    ids = rng.integers(-2, 3, (3, 40)).astype(np.int32)
    values = rng.permutation(40).astype(np.int32)[None]
    expected = [[values[0, row == own].min() for own in row] for row in ids]
    found = smallest_in_document(jnp.asarray(values), jnp.asarray(ids))
    np.testing.assert_array_equal(found, expected)
    whole = smallest_in_document(jnp.asarray(values), None)
    np.testing.assert_array_equal(whole, np.zeros((1, 40)))


def test_splash_refuses_masks_that_count_tokens_in_packed_rows():
    """It evaluates a mask on the row's token indices, which only distances survive."""
    first = LMInfinite(40, 3).pieces(1024)[1].mask
    request = Request((first,), "tpu", seq_len=1024, dtype="float32", packed=True)
    assert "not of each packed document" in refusal("splash", request)
    near = Request((LMInfinite(40, 0).pieces(1024)[0].mask,), "tpu", 1024, "float32", packed=True)
    assert not refusal("splash", near)
