"""A model whose layers rotate by two lists of frequencies, against a definition of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext import methods as m
from ctxext.model import reading
from ctxext.model.parts import Parts
from ctxext.model.trainable import LastLayers
from ctxext.rope import rope_at, rotation_at
from support import tiny

WINDOW = 9
CONFIG = tiny.config(
    num_hidden_layers=3,
    parts=Parts(
        sliding_window=WINDOW,
        windowed=(True, False, True),
        sliding_rope_theta=50.0,
    ),
)
SCALING = m.FullAttentionOnly(inner=m.Yarn(4.0))
TOKENS = tiny.tokens(2, 24)


def logits_by_definition(params, tokens, ropes):
    """Every score of every layer; ropes: (inv_freq, factor) of each layer."""
    config = CONFIG
    T = tokens.shape[1]
    H = config.head_dim
    index = np.arange(T)
    distance = index[:, None] - index[None, :]

    def norm(x, weight):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight[None]

    def turned(x, inv_freq, factor):
        angles = index[:, None, None] * inv_freq[None, None, :]
        a, b = x[..., : H // 2], x[..., H // 2 :]
        cos, sin = factor * np.cos(angles), factor * np.sin(angles)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def of_row(row):
        x = params["embed_tokens"]["embedding"][row]
        for number, (inv_freq, factor) in enumerate(ropes):
            layer = jax.tree.map(lambda leaf, i=number: leaf[i], params["segments"]["0"])
            project = layer["self_attn"]
            y = norm(x, layer["input_layernorm"]["weight"])
            q, k, v = ((y @ project[f"{p}_proj"]["kernel"]).reshape(T, -1, H) for p in "qkv")
            repeats = config.num_attention_heads // config.num_key_value_heads
            q = turned(q, inv_freq, factor)
            k = turned(k, inv_freq, factor).repeat(repeats, 1)
            visible = distance >= 0
            if CONFIG.parts.windowed[number]:
                visible = visible & (distance < WINDOW)
            scores = jnp.where(visible[None], jnp.einsum("tnh,snh->nts", q, k) / H**0.5, -jnp.inf)
            out = jnp.einsum("nts,snh->tnh", jax.nn.softmax(scores), v.repeat(repeats, 1))
            x = x + out.reshape(T, -1) @ project["o_proj"]["kernel"]
            y = norm(x, layer["post_attention_layernorm"]["weight"])
            mlp = layer["mlp"]
            gate = jax.nn.silu(y @ mlp["gate_proj"]["kernel"])
            x = x + (gate * (y @ mlp["up_proj"]["kernel"])) @ mlp["down_proj"]["kernel"]
        return norm(x, params["norm"]["weight"]) @ params["lm_head"]["kernel"]

    return jnp.stack([of_row(row) for row in tokens])


def loss_by_definition(params, tokens, ropes):
    logs = jax.nn.log_softmax(logits_by_definition(params, tokens, ropes))[:, :-1]
    return -jnp.take_along_axis(logs, jnp.asarray(tokens)[:, 1:, None], -1).sum()


def ropes_of_layers():
    full = rope_at(m.Yarn(4.0), CONFIG.rope_base(), 24)
    window = 50.0 ** (-np.arange(0, CONFIG.head_dim, 2) / CONFIG.head_dim), 1.0
    return window, (full.inv_freq, full.attention_factor), window


def test_values_and_gradients_are_those_of_the_definition():
    """In one scan over layers of both types, and with the last layer apart from it."""
    params = tiny.params(CONFIG)
    batch = tiny.next_token_batch(TOKENS)
    rotation = rotation_at(SCALING, CONFIG.rope_base(), TOKENS.shape[1])
    by_definition = jax.jit(
        jax.value_and_grad(lambda params: loss_by_definition(params, TOKENS, ropes_of_layers()))
    )
    expected, expected_gradients = by_definition(params)
    loss = functools.partial(tiny.loss, config=CONFIG)
    value, gradients = jax.jit(jax.value_and_grad(loss))(params, batch, rotation)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    trees = (gradients, expected_gradients)
    for actual, wanted in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=2e-5 * float(abs(wanted).max()))
    apart = LastLayers(1).init(params, 0)

    def materialised(params):
        return loss(LastLayers(1).materialize(params, {}), batch, rotation)

    np.testing.assert_allclose(jax.jit(materialised)(apart), expected, rtol=1e-5)


def test_a_cached_text_and_one_in_chunks_are_the_text_read_at_once(monkeypatch):
    lm = tiny.lm(CONFIG, scaling=SCALING)
    new = lm.generate(TOKENS, max_new_tokens=6)
    whole = np.concatenate([TOKENS, new], 1)
    logits = np.asarray(lm.logits(whole))
    np.testing.assert_array_equal(new, logits[:, 23:-1].argmax(-1))
    ropes = ropes_of_layers()
    by_definition = jax.jit(lambda params: logits_by_definition(params, whole, ropes))
    expected = by_definition(tiny.params(CONFIG))
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    rows = tiny.tokens(2, 150, seed=1)
    nll = lm.loss(rows)
    monkeypatch.setitem(reading.PART, "cpu", 1e3)
    monkeypatch.setattr(reading, "SMALLEST_CHUNK", 32)
    np.testing.assert_allclose(lm.loss(rows), nll, atol=2e-5)


@pytest.mark.check
def test_keys_that_are_rotated_when_read_are_those_of_their_layer():
    lm = tiny.lm(CONFIG, scaling=SCALING, attention=m.SelfExtend(2, 8))
    new = lm.generate(TOKENS, max_new_tokens=6)
    logits = np.asarray(lm.logits(np.concatenate([TOKENS, new], 1)))
    np.testing.assert_array_equal(new, logits[:, 23:-1].argmax(-1))


def test_one_list_is_the_program_it_was():
    """Layers that differ in their windows only share a table, as before."""
    config = tiny.config(parts=Parts(sliding_window=WINDOW, windowed=(True, False)))
    rotation = rotation_at(m.Yarn(4.0), config.rope_base(), 24)
    assert rotation.sliding is None
    batch = tiny.next_token_batch(TOKENS)
    loss = functools.partial(tiny.loss, config=config)
    text = str(jax.make_jaxpr(loss)(tiny.params(config), batch, rotation))
    two = rotation_at(m.FullAttentionOnly(inner=m.Yarn(4.0)), config.rope_base(), 24)
    both = str(jax.make_jaxpr(loss)(tiny.params(config), batch, two))
    assert both.count(" cos ") == 2 * text.count(" cos ")
    assert text.count(" scan[") == both.count(" scan[")
