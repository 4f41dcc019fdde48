"""Ring attention on simulated devices has the values and gradients of `dense`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Attention, Causal, dense
from ctxext.attention.ring import (
    block_size,
    check_length,
    length_multiple,
    ring,
    work_table,
    zigzag,
)
from ctxext.data import Batch
from ctxext.methods import LMInfinite, PoSE, SelfExtend
from ctxext.parallel.attention import ring_order, token_order
from ctxext.parallel.mesh import Mesh
from ctxext.rope import RopeBase, Unscaled
from support import tiny


def packed(B: int, T: int) -> np.ndarray:
    """Documents 1, 2, ... cut anywhere, then padding 0."""
    rng = np.random.default_rng(3)
    cuts = np.sort(rng.integers(0, T, (B, 4)), axis=1)
    rows = (np.arange(T)[None, :, None] >= cuts[:, None]).sum(-1) + 1
    return np.where(np.arange(T) < T - T // 7, rows, 0).astype(np.int32)


@pytest.mark.parametrize(
    ("attention", "mesh", "T", "segments"),
    [
        pytest.param(Causal(), Mesh(seq=2), 64, False, marks=pytest.mark.slow),
        pytest.param(Causal(), Mesh(seq=4), 24, True, marks=pytest.mark.slow),
        pytest.param(Causal(), Mesh(seq=8), 96, False, marks=pytest.mark.slow),
        (Causal(), Mesh(seq=2), 2048, True),  # 2 chunks of 4 blocks on each device
        (Causal(), Mesh(fsdp=2, seq=2, tensor=2), 64, True),
        pytest.param(SelfExtend(3, 20), Mesh(seq=2), 96, True, marks=pytest.mark.slow),
        pytest.param(SelfExtend(8, 30), Mesh(seq=4), 96, False, marks=pytest.mark.check),
        (SelfExtend(2, 9), Mesh(seq=8), 64, True),
        pytest.param(LMInfinite(20, 3), Mesh(seq=4), 128, False, marks=pytest.mark.slow),
        (LMInfinite(20, 3), Mesh(seq=8), 128, False),
    ],
    ids=str,
)
def test_ring_equals_dense_in_values_and_gradients(
    attention: Attention, mesh: Mesh, T: int, segments: bool
):
    B = 2
    N = 4
    K = 2
    H = 8
    rng = np.random.default_rng(0)
    pieces = attention.pieces(1024)
    masks = [piece.mask for piece in pieces]

    def draw(heads: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(B, T, heads, H)), jnp.float32)

    q = tuple(draw(N) for _ in pieces)
    k = tuple(draw(K) for _ in pieces)
    v = draw(K)
    weight = draw(N)
    ids = jnp.asarray(packed(B, T)) if segments else None
    index = jnp.arange(T)[None]

    def by_ring(q, k, v):
        q, k, v = jax.tree.map(lambda x: ring_order(x, mesh), (q, k, v))
        ordered_ids = None if ids is None else ring_order(ids, mesh)
        sharding = mesh.activations(v.shape)
        out = ring(q, k, v, masks, segment_ids=ordered_ids, sharding=sharding)
        return token_order(out, mesh)

    def by_dense(q, k, v):
        return dense(
            q, k, v, masks, query_index=index, key_index=index, query_segments=ids, key_segments=ids
        )

    def both(kernel):
        def total(q, k, v):
            out = kernel(q, k, v)
            return (out * weight).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return out, gradients

    for actual, expected in zip(
        jax.tree.leaves(both(by_ring)), jax.tree.leaves(both(by_dense)), strict=True
    ):
        scale = max(1, abs(expected).max())
        np.testing.assert_allclose(actual, expected, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize(
    ("attention", "mesh"),
    [
        (Causal(), Mesh(fsdp=2, seq=2, tensor=2)),
        pytest.param(Causal(), Mesh(seq=8), marks=pytest.mark.slow),
        pytest.param(SelfExtend(4, 12), Mesh(fsdp=2, seq=2, tensor=2), marks=pytest.mark.check),
        # The same with fewer axes or devices.
        pytest.param(Causal(), Mesh(seq=2), marks=pytest.mark.slow),
        pytest.param(SelfExtend(4, 12), Mesh(seq=2), marks=pytest.mark.slow),
        pytest.param(SelfExtend(4, 12), Mesh(seq=8), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_packed_pose_batch_has_the_loss_and_the_gradient_of_one_device(
    attention: Attention, mesh: Mesh
):
    """Positions that skip, segments and weights all travel with their tokens."""
    B = 2
    T = 64
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, tiny.VOCAB, (B, T)).astype(np.int32)
    targets = rng.integers(0, tiny.VOCAB, (B, T)).astype(np.int32)
    positions = PoSE(max_position_embeddings=256).sample(rng, (B, T)).astype(np.int32)
    weights = (rng.random((B, T)) < 0.7).astype(np.float32)
    batch = Batch(tokens, targets, weights, positions, packed(B, T))._asdict()
    batch = {field: jnp.asarray(x) for field, x in batch.items()}
    rotation = Unscaled().rope(RopeBase(16, 1e4, 32), 256).rotation()

    def step(mesh: Mesh, kernel):
        def loss(params):
            settings = {"attention": attention, "kernel": kernel, "remat": "full", "mesh": mesh}
            return tiny.loss(params, batch, rotation, **settings)

        return jax.jit(jax.value_and_grad(loss))(tiny.params())

    on_one = step(Mesh(), "dense")
    on_many = step(mesh, "auto")
    for actual, expected in zip(jax.tree.leaves(on_many), jax.tree.leaves(on_one), strict=True):
        scale = max(1, abs(expected).max())
        np.testing.assert_allclose(actual, expected, atol=1e-5 * scale, rtol=1e-5)


def test_zigzag_gives_every_device_an_early_and_a_late_chunk():
    np.testing.assert_array_equal(zigzag(12, 3), [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7])
    np.testing.assert_array_equal(zigzag(8, 1), np.arange(8))


@pytest.mark.parametrize("S", [2, 4, 8])
def test_causal_work_is_balanced_over_devices_and_steps(S: int):
    """With h blocks per chunk, a device visits 2 h^2 pairs with each other one; none is hidden."""
    h = 4
    visited = np.zeros((2 * S * h,) * 2, int)
    total = np.zeros((S, S), int)
    for mask in (piece.mask for piece in Causal().pieces(1024)):
        for pairs, counts in work_table(mask, S, h * 32, 32):
            total += counts
            order = zigzag(2 * S * h, S).reshape(S, 2 * h)
            for d, r in np.ndindex(S, S):
                for i, j in pairs[d, r, : counts[d, r]]:
                    visited[order[d][i], order[(d - r) % S][j]] += 1
    np.testing.assert_array_equal(visited, np.tril(np.ones_like(visited)))
    assert (total[:, 1:] == 2 * h * h).all()
    assert (total[:, 0] == 2 * h * h + h).all()


def test_lengths_that_cannot_be_cut_are_refused():
    chunks = (1, 40, 256, 512, 4096, 320)
    assert [block_size(chunk, 512) for chunk in chunks] == [1, 40, 256, 512, 512, 320]
    with pytest.raises(ValueError, match="make the length a multiple of 64 x mesh.seq"):
        block_size(2 * 521, 512)
    x = jnp.zeros((1, 12, 2, 8))
    masks = [piece.mask for piece in Causal().pieces(1024)]
    with pytest.raises(ValueError, match="make the length a multiple of 16"):
        ring([x], [x], x, masks, sharding=Mesh(seq=8).activations((1, 16, 2, 8)))
    for length in (1, 30, 5121, 10242):
        for devices in (2, 3, 8):
            multiple = length_multiple(length, devices)
            check_length(-(-length // multiple) * multiple, devices, what="windows")
    assert length_multiple(17, 1) == 1
