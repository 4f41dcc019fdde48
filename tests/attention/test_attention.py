"""Pieces, masks and kernels against the authors' distances, float64 loops, and each other."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.attention import Attention, Band, Causal, blocked, dense, make_attention, parts, tiles
from ctxext.attention.blocked import block_size
from ctxext.attention.parts import WHOLE, Parts, parts_of
from ctxext.methods.lm_infinite import LMInfinite
from ctxext.methods.self_extend import SelfExtend
from ctxext.rope import RopeBase, Unscaled

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "attention.json").read_text())["cases"]
METHODS = [Causal(), SelfExtend(4, 8), SelfExtend(3, 20), SelfExtend(8, 300)]
SPARSE = [LMInfinite(16), LMInfinite(100, 3), LMInfinite(150, 0)]


def distances(attention: Attention, length: int) -> np.ndarray:
    """Rotary distance of every pair, NaN where hidden; fails if two pieces claim the same pair."""
    index = np.arange(length)
    out = np.full((length, length), np.nan)
    for piece in attention.pieces(1024):
        visible = piece.mask.visible(index[:, None], index[None])
        assert np.isnan(out[visible]).all(), "pieces overlap"
        distance = piece.query_positions(index)[:, None] - piece.key_positions(index)[None]
        out[visible] = distance[visible]
    return out


def test_self_extend_applies_the_distances_of_the_authors_code():
    """Token by token. One variant has fractional positions, of which only whole ones count."""
    cases = [case for case in GOLDEN if case["method"] == "self_extend"]
    compared = 0
    for case in cases:
        p = case["params"]
        T = p["T"]
        expected = np.full((T, T), np.nan)
        for i, row in enumerate(case["distance"]):
            expected[i, : len(row)] = [np.nan if value is None else value for value in row]
        if np.nanmax(abs(expected - np.round(expected))) > 0.01:
            assert case["variant"] == "Llama.py"
            assert p["neighbor_window"] % p["group_size"]
            continue
        compared += 1
        actual = distances(SelfExtend(p["group_size"], p["neighbor_window"]), T)
        np.testing.assert_array_equal(actual, expected, case["id"])
    assert (len(cases), compared) == (36, 33)


@pytest.mark.parametrize("attention", METHODS, ids=repr)
def test_pieces_are_disjoint_causal_and_cover_the_past(attention: Attention):
    table = distances(attention, 340)
    past = np.tri(340, dtype=bool)
    assert (np.isnan(table) == ~past).all()
    assert (np.diag(table) == 0).all()
    assert (table[past] >= 0).all()
    # Methods are static arguments of compiled functions.
    assert hash(attention) == hash(eval(repr(attention)))
    assert hash(attention.pieces(1024)) == hash(attention.pieces(1024))


def test_self_extend_is_plain_inside_its_window_and_with_groups_of_one():
    causal = distances(Causal(), 60)
    extended = distances(SelfExtend(4, 20), 60)
    near = causal < 20
    np.testing.assert_array_equal(extended[near], causal[near])
    np.testing.assert_array_equal(distances(SelfExtend(1, 20), 60), causal)
    assert np.nanmax(extended) == 59 // 4 + 20 - 20 // 4


@pytest.mark.parametrize("attention", SPARSE, ids=repr)
def test_lm_infinite_sees_near_tokens_and_the_first_ones_at_a_bounded_distance(
    attention: LMInfinite,
):
    """min(i - j, window) where i - j < window or j < num_global, nothing else."""
    i, j = np.indices((300, 300))
    visible = (i >= j) & ((i - j < attention.window) | (j < attention.num_global))
    expected = np.where(visible, np.minimum(i - j, attention.window), np.nan)
    np.testing.assert_array_equal(distances(attention, 300), expected)
    assert hash(attention) == hash(eval(repr(attention)))


def brute(mask: Band, query: range, key: range) -> tuple[bool, bool]:
    """Whether any pair of the block is visible, and whether all are."""
    pairs = [bool(mask.visible(q, k)) for q in query for k in key]
    return any(pairs), all(pairs)


spans = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda x: range(x[0], sum(x)))
bands = st.tuples(st.integers(0, 20), st.none() | st.integers(1, 20)).map(
    lambda x: Band(x[0], x[1] and x[0] + x[1])
)


@settings(max_examples=300, deadline=None)
@given(bands, spans, spans)
def test_a_mask_knows_its_blocks(mask: Band, query: range, key: range):
    assert mask.block(query, key) == brute(mask, query, key)


@settings(max_examples=100, deadline=None)
@given(bands, st.integers(1, 8), st.integers(1, 12))
def test_visible_pairs_cover_the_mask_exactly(mask: Band, blocks: int, size: int):
    full, partly = tiles.visible_pairs(mask, blocks, size)
    index = np.arange(blocks * size)
    visible = mask.visible(index[:, None], index[None]).reshape(blocks, size, blocks, size)
    some = visible.any((1, 3))
    every = visible.all((1, 3))
    assert {(i, j) for i, j in full} == set(zip(*np.nonzero(every), strict=True))
    assert {(i, j) for i, j in partly} == set(zip(*np.nonzero(some & ~every), strict=True))


def rows(
    attention: Attention,
    T: int,
    *,
    B: int = 2,
    N: int = 4,
    K: int = 2,
    H: int = 8,
    dtype="float32",
    seed=0,
):
    """Random queries and keys of each piece, as after its rotation, values, and masks."""
    rng = np.random.default_rng(seed)
    pieces = attention.pieces(1024)

    def draw(heads: int):
        return jnp.asarray(1.5 * rng.normal(size=(B, T, heads, H)), dtype)

    queries = tuple(draw(N) for _ in pieces)
    keys = tuple(draw(K) for _ in pieces)
    values = draw(K)
    return queries, keys, values, [piece.mask for piece in pieces]


def packed(B: int, T: int, seed: int = 0) -> np.ndarray:
    """Documents 1, 2, ... of random lengths, different in every row, then padding 0."""
    rng = np.random.default_rng(seed)
    out = np.zeros((B, T), np.int32)
    for row in out:
        cuts = np.sort(rng.choice(T, min(4, T), replace=False))
        row[:] = np.searchsorted(cuts, np.arange(T), side="right") + 1
        row[T - T // 7 :] = 0
    return out


def loops(queries, keys, values, masks, segments=None) -> np.ndarray:
    """softmax(q k / sqrt(H)) v by three loops in float64."""
    queries = [np.asarray(q, np.float64) for q in queries]
    keys = [np.asarray(k, np.float64) for k in keys]
    values = np.asarray(values, np.float64)
    B, T, N, H = queries[0].shape
    group = N // values.shape[2]
    out = np.zeros((B, T, N, H))
    for b in range(B):
        for n in range(N):
            for t in range(T):
                weights = {}
                for q, k, mask in zip(queries, keys, masks, strict=True):
                    for s in range(T):
                        same_segment = segments is None or segments[b, t] == segments[b, s]
                        if same_segment and mask.visible(t, s):
                            weights[s] = np.exp(q[b, t, n] @ k[b, s, n // group] / H**0.5)
                total = sum(w * values[b, s, n // group] for s, w in weights.items())
                out[b, t, n] = total / sum(weights.values())
    return out


def by_dense(q, k, v, masks, segments=None):
    """Masks count the tokens of each document from its first."""
    index = np.arange(v.shape[1])[None]
    if segments is not None:
        first = [[np.flatnonzero(row == own)[0] for own in row] for row in np.asarray(segments)]
        index = index - np.array(first)
    index = jnp.asarray(index)
    return dense(
        q,
        k,
        v,
        masks,
        query_index=index,
        key_index=index,
        query_segments=segments,
        key_segments=segments,
    )


def by_blocks(q, k, v, masks, segments=None):
    return blocked(q, k, v, masks, segment_ids=segments)


@pytest.mark.parametrize(
    ("attention", "with_segments"),
    [(Causal(), False), (SelfExtend(2, 5), False), (SelfExtend(2, 5), True)],
)
def test_both_kernels_equal_loops_in_float64(attention: Attention, with_segments: bool):
    q, k, v, masks = rows(attention, 23)
    segments = packed(2, 23) if with_segments else None
    expected = loops(q, k, v, masks, segments)
    segments = None if segments is None else jnp.asarray(segments)
    for kernel in (by_dense, by_blocks):
        out = jax.jit(lambda *x, kernel=kernel: kernel(*x, masks, segments))(q, k, v)
        np.testing.assert_allclose(out, expected, atol=2e-6)


def compare(
    attention: Attention, T: int, segments, dtype: str = "float32", tolerance: float = 3e-6
):
    q, k, v, masks = rows(attention, T, dtype=dtype)
    grad = jnp.asarray(np.random.default_rng(9).normal(size=q[0].shape), dtype)

    def both(kernel):
        def total(q, k, v):
            out = kernel(q, k, v, masks, segments)
            return (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(), out

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)

    (_, out), gradients = both(by_blocks)
    (_, expected), expected_gradients = both(by_dense)
    assert out.dtype == jnp.dtype(dtype)
    for actual, exact in zip(
        jax.tree.leaves((out, gradients)),
        jax.tree.leaves((expected, expected_gradients)),
        strict=True,
    ):
        actual = np.asarray(actual, np.float32)
        expected_value = np.asarray(exact, np.float32)
        np.testing.assert_allclose(
            actual, expected_value, atol=tolerance * max(1, abs(expected_value).max()), rtol=0
        )


# Shorter than a block, two blocks and a bit, a multiple of the block, one token more.
@pytest.mark.parametrize(
    ("attention", "T"),
    [
        (Causal(), 1),
        pytest.param(Causal(), 50, marks=pytest.mark.check),
        (Causal(), 300),
        (Causal(), 384),
        pytest.param(SelfExtend(3, 20), 50, marks=pytest.mark.check),
        (SelfExtend(8, 200), 385),
        pytest.param(LMInfinite(20, 3), 50, marks=pytest.mark.check),
        (LMInfinite(100, 10), 385),
        pytest.param(LMInfinite(200, 0), 385, marks=pytest.mark.check),
    ],
    ids=repr,
)
def test_blocked_equals_dense_in_values_and_gradients(attention: Attention, T: int):
    compare(attention, T, None)


@pytest.mark.parametrize(
    ("attention", "T"),
    [
        pytest.param(SelfExtend(4, 30), 300, marks=pytest.mark.check),
        (Causal(), 700),
        pytest.param(SelfExtend(8, 200), 700, marks=pytest.mark.check),
        (LMInfinite(150, 4), 700),
    ],
    ids=repr,
)
def test_blocked_equals_dense_on_packed_rows(attention: Attention, T: int):
    compare(attention, T, jnp.asarray(packed(2, T)))


def test_parts_of_rows_and_heads_change_nothing(monkeypatch):
    """Each row, and each head of a row, by itself: what a CPU does with larger blocks."""
    monkeypatch.setattr(parts, "SCORES_IN_CACHE", 1)
    one = parts_of(jnp.zeros((3, 2, 4, 256, 8)), 2, "cpu")
    assert one == Parts(rows=2, heads=4)
    compare(SelfExtend(8, 200), 700, jnp.asarray(packed(2, 700)))


def test_parts_hold_as_many_heads_as_fit_into_the_cache():
    q = jax.ShapeDtypeStruct((4, 8, 6, 512, 64), jnp.float32)
    assert parts_of(q, 1, "cpu") == Parts(rows=8, heads=3)  # two heads of 1 MiB
    assert parts_of(q, 2, "cpu") == Parts(rows=8, heads=2)  # three of half as much
    small = jax.ShapeDtypeStruct((4, 2, 4, 256, 64), jnp.float32)
    assert parts_of(small, 1, "cpu") == WHOLE
    assert parts_of(q, 1, "tpu") == parts_of(q, 1, "gpu") == WHOLE


def test_segments_may_have_any_numbers_in_any_order():
    """Whole blocks of one segment each; zero and negative ids must not be confused either."""
    ids = np.array([[0, -1, 0, 3, -1, 3], [-2, -2, 0, 0, 1, -2]])
    compare(Causal(), 768, jnp.asarray(np.repeat(ids, 128, 1), jnp.int32))


# (blocks, tokens per block, parts of the two rows): few, because each compiles its operations anew.
SIZES = ((1, 1, 1), (1, 4, 2), (2, 4, 2), (6, 1, 2), (6, 4, 1), (6, 4, 2))


@settings(max_examples=10, deadline=None)
@given(bands, st.sampled_from(SIZES), st.integers(0, 10**6))
def test_in_packed_rows_only_pairs_with_a_common_segment_are_visited(
    mask: Band, sizes: tuple[int, int, int], seed: int
):
    """Once each: block pairs in which the mask shows something and some segment is in common.

    Without a mask only where every pair of tokens is visible.
    """
    blocks, size, num_parts = sizes
    T = blocks * size
    segments = np.stack([packed(1, T, seed)[0], packed(1, T, seed + 1)[0]])
    where = tiles.Blocks(jnp.arange(blocks) * size, tiles.split_tokens(jnp.asarray(segments), size))
    pairs = tiles.visible_pairs(mask, blocks, size)
    work = [
        (tiles.Tile(0, inside, size), tiles.Pairs(jnp.asarray(x), len(x)))
        for x, inside in zip(pairs, (None, mask), strict=True)
    ]
    index = np.arange(T)
    in_pairs = (num_parts, -1, blocks, size, blocks, size)
    same = (segments[:, :, None] == segments[:, None, :]).reshape(in_pairs)
    visible = mask.visible(index[:, None], index[None]).reshape(1, 1, *in_pairs[2:])
    visits = np.zeros((num_parts, blocks, blocks), int)
    for tile, (chosen, count) in tiles.within_segments(work, where, where, Parts(rows=num_parts)):
        assert tile.mixed == (tile.mask is not None)
        for part in range(num_parts):
            for i, j in np.asarray(chosen)[part, : int(count[part])]:
                visits[part, i, j] += 1
                assert tile.mixed or (visible & same)[part, :, i, :, j].all()
    any_visible, any_same = visible.any((1, 3, 5)), same.any((1, 3, 5))
    np.testing.assert_array_equal(visits, any_visible & any_same)


def test_blocked_equals_dense_in_bfloat16():
    compare(SelfExtend(8, 200), 300, None, "bfloat16", 0.01)


def test_larger_blocks_of_longer_texts():
    lengths = (5, 300, 1023, 1024, 2047, 2048, 65536)
    assert [block_size(T, "cpu", 8) for T in lengths] == [5, 128, 256, 512, 512, 512, 512]
    packed = [block_size(T, "cpu", 8, packed=True) for T in lengths]
    assert packed == [5, 128, 128, 256, 256, 512, 512]
    assert [block_size(T, "gpu", 8) for T in lengths] == [5, 128, 256, 512, 512, 1024, 1024]
    widths = (32, 64, 65, 256, 1024, 4096)
    assert [block_size(8192, "gpu", n) for n in widths] == [1024, 1024, 512, 512, 256, 128]
    q, k, v, masks = rows(SelfExtend(16, 700), 2100, B=1, N=2, K=1)
    out = jax.jit(lambda *x: blocked(*x, masks))(q, k, v)
    np.testing.assert_allclose(out, by_dense(q, k, v, masks), atol=1e-5)


def test_blocked_survives_scores_far_from_zero():
    """Thanks to the running maximum, scores around +-3000 neither overflow nor vanish."""
    q, k, v, masks = rows(Causal(), 200)
    q = (q[0] * 500,)

    def total(v):
        out = blocked(q, k, v, masks)
        return out.sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(v)
    # In float32, scores of 3000 are off by 2e-4.
    np.testing.assert_allclose(out, by_dense(q, k, v, masks), atol=2e-3)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kernel", ["dense", "blocked"])
def test_rotation_follows_positions_and_masks_follow_indices(kernel: str):
    """Positions moved by a constant change nothing: the mask never reads them."""
    rng = np.random.default_rng(0)

    def draw(heads: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(1, 40, heads, 8)), jnp.float32)

    q = draw(4)
    k = draw(2)
    v = draw(2)
    rotation = Unscaled().rope(RopeBase(8, 1e4, 64), 64).rotation()

    @functools.partial(jax.jit, static_argnums=1)
    def attend(positions, attention):
        return make_attention(attention, kernel, rotation, positions)(q, k, v, None, 0)[0]

    index = jnp.arange(40)[None]
    for attention in (Causal(), SelfExtend(4, 8)):
        in_order = attend(index, attention)
        np.testing.assert_allclose(attend(index + 1000, attention), in_order, atol=1e-5)
        reverse = attend(39 - index, attention)
        assert abs(reverse - in_order).max() > 0.05
        np.testing.assert_allclose(reverse[:, 0], v[:, 0, jnp.array([0, 0, 1, 1])], atol=1e-6)


def test_memory_of_blocked_grows_linearly():
    """Temporary memory of the compiled forward and backward pass; of `dense` it is quadratic."""

    def temporary(kernel, T: int) -> int:
        q, k, v, masks = rows(SelfExtend(8, 256), T, B=1, N=2, K=1)
        step = jax.jit(jax.grad(lambda q, k, v: kernel(q, k, v, masks).sum(), (0, 1, 2)))
        return step.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

    large = temporary(blocked, 4096)
    assert large < 5 * temporary(blocked, 1024)
    assert temporary(by_dense, 4096) > 9 * temporary(by_dense, 1024)
    assert temporary(by_dense, 4096) > 10 * large
