"""Laws of every attention method that is found: pieces, masks, and settings that change nothing."""

import numpy as np
import pytest

from ctxext import methods as m
from ctxext.attention import Causal, LayerKind, Layers
from ctxext.attention.kernels import choose, refusal
from ctxext.attention.length import pieces_of_any_length
from ctxext.attention.masks import Chunks
from ctxext.attention.pieces import Attention, Band, Mask, Piece, within
from ctxext.attention.request import requests_of
from ctxext.methods import method_name
from support.attention_by_definition import by_definition
from support.every_method import EVERY_ATTENTION

T = 96


def output(attention: Attention, T: int = T) -> np.ndarray:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(T, heads, 8)) for heads in (4, 2, 2))
    return by_definition(attention.pieces(T), q, k, v, attention=attention)


def blocks(mask: Mask, size: int = 8):
    """(pairs of a block, what the mask says of the block) for the blocks that kernels ask of."""
    index = np.arange(T)
    visible = mask.visible(index[:, None], index[None])
    for i in range(0, T, size):
        for j in range(0, i + 1, size):
            said = mask.block(range(i, i + size), range(j, j + size))
            yield visible[i : i + size, j : j + size], said


@pytest.mark.parametrize("attention", EVERY_ATTENTION, ids=method_name)
def test_pieces_are_disjoint_and_causal_and_every_token_sees_itself(attention: Attention):
    pieces = pieces_of_any_length(attention)
    assert hash(pieces) == hash(pieces_of_any_length(attention))
    index = np.arange(T)
    for head in range(4):
        seen = np.zeros((T, T), int)
        for piece in pieces:
            if head in piece.heads.of(4):
                seen += piece.mask.visible(index[:, None], index[None])
        assert seen.max() == 1
        assert (np.diag(seen) == 1).all()
        if all(piece.mask.causal for piece in pieces):
            assert not np.triu(seen, 1).any()


@pytest.mark.parametrize("attention", EVERY_ATTENTION, ids=method_name)
def test_no_kernel_leaves_out_a_pair(attention: Attention):
    """Blocks with visible pairs are visited, and without the mask only if all of them are."""
    for piece in pieces_of_any_length(attention):
        for pairs, (any_visible, all_visible) in blocks(piece.mask):
            assert any_visible >= pairs.any()
            assert all_visible <= pairs.all()


def test_a_layer_with_a_window_leaves_out_no_later_token_that_a_mask_shows():
    for piece in m.S2AttnAsReleased(T, 24).pieces(T):
        mask = within(piece.mask, 9)
        index = np.arange(T)
        visible = mask.visible(index[:, None], index[None])
        for i in range(0, T, 8):
            for j in range(0, T, 8):
                any_visible, all_visible = mask.block(range(i, i + 8), range(j, j + 8))
                assert any_visible >= visible[i : i + 8, j : j + 8].any()
                assert all_visible <= visible[i : i + 8, j : j + 8].all()


@pytest.mark.parametrize("mask", [Chunks(12, 0, 1), Chunks(12, 1, 2), Chunks(12, 2, None, 5)])
def test_chunks_visit_few_blocks_in_vain(mask: Mask):
    said = [(pairs.any(), pairs.all(), *answer) for pairs, answer in blocks(mask)]
    assert sum(any_visible != told for any_visible, _, told, _ in said) <= 0.1 * len(said)
    assert all(all_visible == told for _, all_visible, _, told in said)


@pytest.mark.parametrize("attention", EVERY_ATTENTION, ids=method_name)
def test_methods_make_a_difference(attention: Attention):
    assert (abs(output(attention) - output(Causal())).max() > 1e-3) == (attention != Causal())


@pytest.mark.parametrize(
    "attention",
    [
        m.SelfExtend(1, 20),
        m.LMInfinite(T),
        m.StreamingLLM(T),
        m.Rerope(T, training_length=T),
        m.LeakyRerope(20, 1),
        m.DCA(T + 8, 8, training_length=T),
        m.String(20, 20),
        m.JetLong(T, 20),
        m.JetLongFreq(T, 20),
        m.S2Attn(2 * T),
        m.Alibi(1e9),
        m.LogTemperature(T),
        m.Llama4Temperature(T + 1),
        m.Ministral3Temperature(T),
        m.Ministral3Temperature(4, beta=0.0),
    ],
    ids=repr,
)
def test_settings_that_change_nothing(attention: Attention):
    np.testing.assert_allclose(output(attention), output(Causal()), atol=1e-12)


def test_leaky_rerope_is_between_plain_rope_and_rerope():
    np.testing.assert_allclose(output(m.LeakyRerope(20, 10**9)), output(m.Rerope(20)), atol=1e-6)


@pytest.mark.parametrize("method", [m.S2Attn(16), m.S2AttnAsReleased(T, 24)])
def test_what_trains_only_is_full_attention_afterwards(method):
    """Within another method too, whose own part stays."""
    assert method.after_training == Causal()
    wrapped = m.LogTemperature(64, inner=method)
    assert wrapped.after_training == m.LogTemperature(64)
    other = m.LogTemperature(64, inner=m.DCA(24, 8))
    assert other.after_training == other


def test_only_dense_evaluates_the_leak_of_s2_attn_as_released():
    method = m.S2AttnAsReleased(T, 24)
    facts = {"platform": "cpu", "seq_len": T, "dtype": "float32", "packed": False}
    plain, leaking = requests_of(method, Layers((LayerKind(), LayerKind(9))), 1, (4, 2), **facts)
    assert choose("auto", plain) == "blocked"
    assert choose("auto", leaking) == "dense"
    for kernel in ("blocked", "ring"):
        with pytest.raises(ValueError, match="visits no token after the query.*choose dense"):
            choose(kernel, leaking)
    assert not refusal("dense", leaking)


BAD = [
    (lambda: m.Rerope(0), "window must be at least 1, got 0"),
    (lambda: m.Rerope(8, training_length=1), "training_length must be at least 2 tokens, got 1"),
    (lambda: m.LeakyRerope(8, 0), "compression must be at least 1, got 0"),
    (lambda: m.DCA(8, 8), "need 1 <= local_window < chunk_size, got 8 and 8"),
    (lambda: m.DCA(8, 2, training_length=0), "training_length must be positive, got 0"),
    (lambda: m.StreamingLLM(0), "recent_size must be at least 1"),
    (lambda: m.String(8, 9), "need 0 <= local_value <= shifted_offset"),
    (lambda: m.String(8, 2, attention_factor=0.0), "attention_factor must be positive"),
    (lambda: m.JetLong(0, 2), "window must be at least 1"),
    (lambda: m.JetLongFreq(8, 8), "need 0 <= near_window < window, got 8 and 8"),
    (lambda: m.JetLongFreq(8, 2, beta_fast=0.5), "need 0 < beta_slow <= beta_fast"),
    (lambda: m.S2Attn(1), "group_size must be at least 2, got 1"),
    (lambda: m.S2AttnAsReleased(10, 4), "group_size must be even"),
    (lambda: m.Alibi(0.0), "largest_exponent must be positive"),
    (lambda: m.Ssmax(0.0), "s must be positive"),
    (lambda: m.Llama4Temperature(0), "need a finite factor from 0 on and a length of at least 1"),
    (lambda: m.Ministral3Temperature(8, beta=-1.0), "need a finite factor from 0 on"),
    (lambda: m.Llama4Temperature(layers="some"), "'some' are not known; .* all, without-rotation"),
    (lambda: Piece(Band(), scaled_layers="some"), "'some' are not known"),  # pyright: ignore
    (lambda: Band(-1), "begins at distance 0 or farther, got -1; .* causal = False"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_bad_settings_name_the_rule(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
