"""Layers that differ: windows chosen by a traced number, and ALiBi's bias, in every kernel."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Band, Causal, LayerKind, Layers, make_attention, parts
from ctxext.attention.bias import LinearBias, alibi_slopes
from ctxext.attention.kernels import choose, explain
from ctxext.attention.layers import PerKind
from ctxext.attention.pieces import Within, within
from ctxext.attention.request import Request
from ctxext.methods.lm_infinite import First, LMInfinite
from ctxext.methods.self_extend import SelfExtend
from ctxext.parallel.attention import make_sharded_attention, ring_order, token_order
from ctxext.parallel.mesh import ONE_DEVICE, Mesh
from ctxext.rope import Rope, RopeBase

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "alibi_slopes.json").read_text())
ROPE = Rope(RopeBase(8, 1e4, 64).inv_freq, 1.1, sliding=Rope(RopeBase(8, 77.0, 64).inv_freq, 0.9))
"""Layers with a window rotate by other frequencies, with another factor."""
ROTATION = ROPE.rotation()
SLOPES = (0.5, 0.25, 0.125, 0.0625)
WINDOWS = (LayerKind(), LayerKind(21), LayerKind(9, rotates=False))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_slopes_are_those_of_the_authors(case):
    slopes = alibi_slopes(case["params"]["n_heads"], case["params"]["alibi_bias_max"])
    np.testing.assert_allclose(slopes, case["slopes"], rtol=2e-6)


@pytest.mark.parametrize("mask", [Band(0, 12), Band(6), First(3, 5)], ids=str)
def test_a_window_cuts_a_mask_and_its_blocks(mask):
    index = np.arange(24)
    query, key = index[:, None], index[None]
    expected = mask.visible(query, key) & (query - key < 8)
    cut = within(mask, 8)
    np.testing.assert_array_equal(cut.visible(query, key), expected)
    np.testing.assert_array_equal(Within(mask, 8).visible(query, key), expected)
    for i in range(0, 24, 4):
        for j in range(0, i + 1, 4):
            any_visible, all_visible = cut.block(range(i, i + 4), range(j, j + 4))
            block = expected[i : i + 4, j : j + 4]
            assert all_visible == block.all()
            assert any_visible or not block.any()
    assert within(mask, None) is mask


def test_a_mask_per_kind_is_the_one_of_that_kind():
    index = np.arange(9)
    masks = (Band(), Band(0, 3), First(2, 4))
    for kind, mask in enumerate(masks):
        actual = PerKind(masks).visible(jnp.int32(kind), index[:, None], index[None])
        np.testing.assert_array_equal(actual, mask.visible(index[:, None], index[None]))


def arrays(B: int, T: int):
    rng = np.random.default_rng(0)
    heads = {"q": 4, "k": 2, "v": 2, "weights": 4}
    return {
        name: jnp.asarray(rng.normal(size=(B, T, count, 8)), jnp.float32)
        for name, count in heads.items()
    }


def value_and_gradients(kernel, attention, layers, kind, *, mesh=ONE_DEVICE, T=64, packed=True):
    x = arrays(2, T)
    segments = jnp.asarray(np.sort(np.random.default_rng(1).integers(1, 4, (2, T))), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(T), (2, T))

    def loss(q, k, v, kind):
        order = ring_order(positions, mesh)
        ids = ring_order(segments, mesh) if packed else None
        attend = make_sharded_attention(
            mesh, attention, kernel, ROTATION, order, ids, layers=layers
        )
        q, k, v = (ring_order(x, mesh) for x in (q, k, v))
        out = token_order(attend(q, k, v, None, None, kind)[0], mesh)
        return (out * x["weights"]).sum(), out

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    if isinstance(kind, int):
        gradients = jax.value_and_grad(lambda q, k, v: loss(q, k, v, kind), (0, 1, 2), has_aux=True)
        (_, out), grads = jax.jit(gradients)(x["q"], x["k"], x["v"])
    else:
        (_, out), grads = gradients(x["q"], x["k"], x["v"], kind)
    return [out, *grads]


BLOCKED = ("blocked", ONE_DEVICE, 520)
RING = ("ring", Mesh(seq=2, tensor=2), 64)


@pytest.mark.parametrize(
    ("kernel", "mesh", "T", "attention", "kind"),
    [
        (*BLOCKED, Causal(), 1),
        pytest.param(*RING, Causal(), 1, marks=pytest.mark.check),
        pytest.param(*BLOCKED, SelfExtend(2, 9), 2, marks=pytest.mark.check),
        pytest.param(*RING, LMInfinite(12, 3), 0, marks=pytest.mark.check),
        pytest.param(*RING, SelfExtend(2, 9), 2, marks=pytest.mark.slow),
        pytest.param(*BLOCKED, LMInfinite(12, 3), 0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_traced_kind_gives_what_dense_gives_for_that_layer(
    kernel, mesh, T, attention, kind, monkeypatch
):
    monkeypatch.setattr(parts, "SCORES_IN_CACHE", 1)  # each head in its own part
    layers = Layers(WINDOWS, LinearBias(SLOPES))
    expected = value_and_gradients("dense", attention, layers, kind, T=T)
    actual = value_and_gradients(kernel, attention, layers, jnp.int32(kind), mesh=mesh, T=T)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


def test_dense_attention_with_windows_and_a_bias_is_that_of_a_loop():
    layers = Layers(WINDOWS, LinearBias(SLOPES))
    T = 30
    x = {name: np.asarray(array, np.float64) for name, array in arrays(2, T).items()}
    out, *_ = value_and_gradients("dense", Causal(), layers, 2, T=T, packed=False)
    for i in (0, 7, 29):
        for head, slope in enumerate(SLOPES):
            seen = range(max(0, i - 8), i + 1)
            scores = [
                x["q"][0, i, head] @ x["k"][0, j, head // 2] / 8**0.5 - slope * (i - j)
                for j in seen
            ]
            weights = np.exp(scores) / np.exp(scores).sum()
            expected = weights @ x["v"][0, list(seen), head // 2]
            np.testing.assert_allclose(out[0, i, head], expected, atol=1e-5)


def test_a_bias_reads_positions_and_not_token_indices():
    """As with rotary embeddings, training that skips positions sees the longer distances."""
    layers = Layers((LayerKind(rotates=False),), LinearBias(SLOPES))
    x = arrays(1, 12)

    @jax.jit
    def of(positions):
        made = make_attention(Causal(), "dense", ROTATION, positions[None], layers=layers)
        return made(x["q"], x["k"], x["v"], None, None)[0]

    def attend(positions):
        return np.asarray(of(positions))

    index = jnp.arange(12)
    skipped = index.at[6:].add(100)
    np.testing.assert_allclose(attend(index + 50), attend(index), atol=1e-6)
    np.testing.assert_allclose(attend(skipped)[:, :6], attend(index)[:, :6], atol=1e-6)
    assert np.abs(attend(skipped)[:, 6:] - attend(index)[:, 6:]).max() > 0.1


def test_fused_kernels_leave_layers_that_differ_and_biases_to_blocked():
    mixed = PerKind((Band(), Band(0, 512)))
    for platform in ("tpu", "gpu"):
        plain = Request((Band(),), platform, seq_len=1024, dtype="bfloat16", packed=False)
        differing = Request((mixed,), platform, seq_len=1024, dtype="bfloat16", packed=False)
        biased = Request((Band(),), platform, 1024, "bfloat16", packed=False, bias=True)
        assert choose("auto", plain) in ("splash", "cudnn")
        assert "do not all see the same tokens" in explain("auto", differing)
        assert "adds no bias" in explain("auto", biased)
        assert choose("auto", differing) == choose("auto", biased) == "blocked"
