"""Temperatures over another attention, and in some layers only."""

import dataclasses
import functools

import numpy as np
import pytest

from ctxext import methods as m
from ctxext.attention.length import pieces_of_any_length
from ctxext.attention.pieces import Attention
from ctxext.cli.method_options import make_methods
from ctxext.methods import label
from ctxext.model import reading
from ctxext.rope import Unscaled
from ctxext.serialization import from_json, to_json
from support import tiny
from support.attention_by_definition import by_definition
from support.reference_llama import ReferenceLlama

DEEP = tiny.config(num_hidden_layers=4)
ENTROPY_ABF = m.LogTemperature(8, unscaled_layers=2)


def output(attention: Attention, T: int = 60) -> np.ndarray:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(T, heads, 8)) for heads in (4, 2, 2))
    return by_definition(attention.pieces(T), q, k, v)


def test_a_temperature_over_another_attention_is_both():
    inner = m.SelfExtend(4, 12)
    scale = m.LogTemperature(8).query_scale
    for piece, scaled in zip(
        inner.pieces(60), m.LogTemperature(8, inner=inner).pieces(60), strict=True
    ):
        assert scaled == dataclasses.replace(piece, query_scale=scale)
    # DCA has a temperature too, which follows the length.
    dca = m.DCA(16, 4, training_length=32)
    both = m.Ministral3Temperature(16, inner=dca)
    assert both.depends_on_length
    pieces_of_any_length(both)
    positions = np.arange(60)
    product = both.pieces(60)[2].query_scale
    own = dca.pieces(60)[2].query_scale
    assert product is not None and own is not None
    expected = own(positions) * (1 + 0.1 * np.log(1 + positions // 16))
    np.testing.assert_allclose(product(positions), expected, rtol=1e-6)


@pytest.mark.parametrize("inner", [m.DCA(16, 4, training_length=32), m.Alibi(), m.LMInfinite(20)])
def test_a_temperature_of_one_changes_nothing(inner: Attention):
    for wrapped in (
        m.LogTemperature(60, inner=inner),
        m.Ministral3Temperature(16, beta=0.0, inner=inner),
        m.Ssmax(1e-9, 1.0, inner=m.Ministral3Temperature(60, inner=inner)),
    ):
        np.testing.assert_allclose(output(wrapped), output(inner), atol=1e-7)
    assert abs(output(m.LogTemperature(8, inner=inner)) - output(inner)).max() > 1e-3


@functools.cache
def reference_logits(length: int) -> np.ndarray:
    """Of Entropy-ABF by the definition: the first two layers are plain."""
    reference = ReferenceLlama(DEEP, tiny.params(DEEP))
    reference.query_scale = lambda layer, p: (
        np.maximum(1, np.log(p + 1) / np.log(8)) if layer >= 2 else np.ones(len(p))
    )
    return reference.feed(tiny.tokens(1, length)[0], Unscaled().rope(DEEP.rope_base(), length))


def test_the_first_layers_can_be_left_unscaled():
    """In one scan over the layers, which all are scaled without it."""
    tokens = tiny.tokens(1, 70)
    lm = tiny.lm(DEEP, attention=ENTROPY_ABF)
    expected = reference_logits(70)
    np.testing.assert_allclose(np.asarray(lm.logits(tokens))[0], expected, atol=5e-5)
    reference = ReferenceLlama(DEEP, tiny.params(DEEP))
    reference.query_scale = lambda layer, p: np.maximum(1, np.log(p + 1) / np.log(8))
    everywhere = reference.feed(tokens[0], Unscaled().rope(DEEP.rope_base(), 70))
    assert abs(everywhere - expected).max() > 1e-2


@pytest.mark.check
def test_first_layers_are_unscaled_in_the_cache_and_in_parts(monkeypatch):
    tokens = tiny.tokens(1, 70)
    lm = tiny.lm(DEEP, attention=ENTROPY_ABF)
    whole = lm.loss(tokens)
    new = lm.generate(tokens[:, :50], max_new_tokens=4)
    logits = lm.logits(np.concatenate([tokens[:, :50], new], 1))
    np.testing.assert_array_equal(new[0], np.asarray(logits)[0, 49:-1].argmax(-1))
    monkeypatch.setitem(reading.PART, "cpu", 1e3)
    monkeypatch.setattr(reading, "SMALLEST_CHUNK", 32)
    programs = reading._chunk_of_layer._cache_size()
    np.testing.assert_allclose(lm.loss(tokens), whole, atol=2e-5)
    assert reading._chunk_of_layer._cache_size() - programs == 1, "one program for all layers"


def test_names_on_the_command_line_and_on_disk():
    method = m.LogTemperature(64, inner=m.DCA(32, 8))
    options = ["--training-length", "64", "--inner", "dca", "--chunk-size", "32"]
    options += ["--local-window", "8"]
    assert make_methods(["log-temperature"], options) == (method,), "DCA gets no temperature too"
    both = m.LogTemperature(64, inner=m.DCA(32, 8, training_length=16))
    of_inner = [*options, "--inner.training-length", "16"]
    assert make_methods(["log-temperature"], of_inner) == (both,)
    assert from_json(to_json(both)) == both
    name = "log-temperature(inner=dca(chunk_size=32, local_window=8), training_length=64)"
    assert label([method]) == name
    seams = ["--attention.inner", "rerope", "--window", "8", "--rope.inner", "yarn"]
    assert make_methods(["ssmax", "cope"], [*seams, "--factor", "2"]) == (
        m.Ssmax(inner=m.Rerope(8)),
        m.CoPE(inner=m.Yarn(2.0)),
    )


BAD = [
    (lambda: m.LogTemperature(8, inner=m.Yarn(2.0)), "such as DCA, but inner is Yarn"),  # type: ignore[arg-type]
    (
        lambda: m.LogTemperature(8, inner=m.Ssmax(inner=m.LogTemperature(9))),
        "LogTemperature cannot wrap itself",
    ),
    (
        lambda: m.Llama4Temperature(inner=m.Rerope(8, training_length=8)),
        "Llama4Temperature and Rerope scale the queries of different layers",
    ),
    (lambda: m.LogTemperature(8, unscaled_layers=-1), "unscaled_layers must be at least 0"),
    (
        lambda: make_methods(["ssmax"], ["--inner", "yarn"]),
        "--inner yarn is not a way of attending: its seam is rope; .* with --attention.inner",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_settings_name_the_rule(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
