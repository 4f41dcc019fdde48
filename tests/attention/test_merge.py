"""Several pieces by a stock flash kernel, against `dense`: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext import methods as m
from ctxext.attention import Band, dense, merge
from ctxext.attention.masks import Chunks
from ctxext.attention.pieces import Mask
from ctxext.attention.splash import splash

B, N, K, H = 2, 4, 2, 8


def stock(q, k, v, causal, window):
    """The public function of jax, whose log-sum-exp is float32 for inputs of float32."""
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="xla",
        return_residual=True,
    )


def by_stock(queries, keys, values, masks):
    def forward(queries, keys, values, masks, _):
        return [
            merge.by_calls(stock, q, k, values, mask)
            for q, k, mask in zip(queries, keys, masks, strict=True)
        ]

    return merge.attend(forward, queries, keys, values, masks)


def by_dense(queries, keys, values, masks, segment_ids=None):
    index = jnp.arange(values.shape[1])[None]
    ids = {"query_segments": segment_ids, "key_segments": segment_ids}
    return dense(queries, keys, values, masks, query_index=index, key_index=index, **ids)


def arrays(pieces: int, T: int):
    rng = np.random.default_rng(0)

    def draw(heads):
        return jnp.asarray(rng.normal(size=(B, T, heads, H)), jnp.float32)

    queries = tuple(draw(N) for _ in range(pieces))
    return queries, tuple(draw(K) for _ in range(pieces)), draw(K), draw(N)


def values_and_gradients(attend, queries, keys, values, weight):
    def total(queries, keys, values):
        out = attend(queries, keys, values)
        return (out * weight).sum(), out

    gradient = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
    (_, out), gradients = jax.jit(gradient)(queries, keys, values)
    return out, gradients


def compiled(attend, masks):
    """One program, which compiles faster than the operations one by one."""
    return jax.jit(functools.partial(attend, masks=masks))


def assert_equal(one, other, atol=1e-5):
    for actual, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


BANDS = Band(0, 7), Band(7, 30), Band(30)
CHUNKS = Chunks(8, 0, 1), Chunks(8, 1, 2), Chunks(8, 2)


@pytest.mark.parametrize("masks", [BANDS, CHUNKS], ids=["bands", "chunks"])
def test_merged_calls_equal_dense_in_values_and_gradients(masks: tuple[Mask, ...]):
    """With grouped heads, and a last chunk that is shorter."""
    x = arrays(3, 45)
    actual = values_and_gradients(functools.partial(by_stock, masks=masks), *x)
    expected = values_and_gradients(functools.partial(by_dense, masks=masks), *x)
    assert_equal(actual, expected)


@pytest.mark.parametrize("T", [1, 7, 8, 16, 17])
@pytest.mark.parametrize("masks", [BANDS, CHUNKS], ids=["bands", "chunks"])
def test_short_texts_that_some_pieces_do_not_reach(masks: tuple[Mask, ...], T: int):
    queries, keys, values, _ = arrays(3, T)
    merged, expected = compiled(by_stock, masks), compiled(by_dense, masks)
    assert_equal(merged(queries, keys, values), expected(queries, keys, values))


def test_which_methods_can_be_calls():
    """LM-Infinite and StreamingLLM see the first tokens, which no band or chunk is."""
    methods = (
        m.SelfExtend(4, 8),
        m.Rerope(8),
        m.LeakyRerope(8, 4),
        m.String(8, 2),
        m.JetLong(16, 8),
        m.JetLongFreq(16, 8),
        m.DCA(12, 4),
    )
    for method in methods:
        assert all(merge.can_split(piece.mask, 64) for piece in method.pieces(64))
    for method in (m.LMInfinite(20), m.StreamingLLM(8), m.S2Attn(8)):
        assert not all(merge.can_split(piece.mask, 64) for piece in method.pieces(64))
    assert merge.can_split(Chunks(8, 2), 512)
    assert not merge.can_split(Chunks(8, 2), 513), "too many calls"
    assert not merge.can_split(Chunks(8, 0, 1, offset=4), 64)


def subtracted(queries, keys, values, window):
    """near + far over all tokens - far over the near ones, as Jet-Long's code merges them."""
    near = stock(queries[0], keys[0], values, True, window)
    far = stock(queries[1], keys[1], values, True, None)
    far_near = stock(queries[1], keys[1], values, True, window)
    top = jnp.maximum(near[1], far[1])
    weights = [jnp.exp(lse - top)[..., None] for _, lse in (near, far, far_near)]
    weights[2] = -weights[2]
    sums = sum(
        weight * part[0] for weight, part in zip(weights, (near, far, far_near), strict=True)
    )
    return sums / sum(weights)


@pytest.mark.parametrize(("height", "least"), [(0.0, 0.0), (10.0, 1e-5), (18.0, 0.1)])
def test_nothing_is_lost_where_near_keys_score_high_by_the_far_rotation(height, least):
    """Far queries against near keys are no pairs of the method, but a subtraction weighs them.

    Their weight, exp(height) times that of the rest, is added and taken away again, so that the
    error grows up to 6e-8 exp(height): all digits of float32 can be gone from a height of 17 on.
    """
    T, window = 40, 8
    queries, keys, values, _ = arrays(2, T)
    # Query and key of the last token agree by the far rotation, which no pair of the method sees.
    direction = jnp.full(H, (height * H**0.5 / H) ** 0.5)
    far_q = queries[1].at[:, -1].set(direction)
    far_k = keys[1].at[:, -1].set(direction)
    queries, keys = (queries[0], far_q), (keys[0], far_k)
    masks = Band(0, window), Band(window)
    expected = compiled(by_dense, masks)(queries, keys, values)
    merged = compiled(by_stock, masks)(queries, keys, values)
    assert_equal(merged, expected, atol=2e-6)
    naive = jax.jit(functools.partial(subtracted, window=window))(queries, keys, values)
    error = abs(naive - expected)[:, -1].max()
    assert least <= error < 1e-6 * np.exp(height)


@pytest.mark.check
@pytest.mark.parametrize("packed", [False, True])
def test_splash_merges_pieces(packed: bool):
    """Interpreted on the CPU; pieces by distance on packed rows too, chunks on whole ones."""
    masks = (Band(0, 40), Band(40)) if packed else (Chunks(48, 0, 1), Chunks(48, 1))
    x = arrays(2, 256)
    rng = np.random.default_rng(1)
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (B, 256))), jnp.int32) if packed else None

    def by_splash(queries, keys, values):
        return splash(queries, keys, values, masks, segment_ids=ids, interpret=True)

    expected = values_and_gradients(functools.partial(by_dense, masks=masks, segment_ids=ids), *x)
    assert_equal(values_and_gradients(by_splash, *x), expected)
