"""The decoder is causal, equals a plain numpy Llama, and does not depend on its segments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.methods.linear import Linear
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.config import ACTIVATIONS
from ctxext.model.decoder import bind, init_params, param_shapes
from ctxext.model.lm import LM
from support import reference_llama, tiny
from support.reference_llama import ReferenceLlama

CONFIGS = {
    "grouped": tiny.CONFIG,
    "every head its own key": tiny.config(num_key_value_heads=4),
    "one key for all": tiny.config(num_key_value_heads=1),
    "tied": tiny.config(tie_word_embeddings=True),
    "biases, wide heads": tiny.config(
        attention_bias=True, mlp_bias=True, head_dim=24, hidden_act="gelu"
    ),
    "theta, eps": tiny.config(rope_theta=5e5, rms_norm_eps=0.1, hidden_act="gelu_pytorch_tanh"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_reference_implementation(name: str):
    config = CONFIGS[name]
    tokens = tiny.tokens(2, 40)
    scaling = Yarn(2.0)
    logits = np.asarray(tiny.lm(config, scaling=scaling).logits(tokens))
    rope = scaling.rope(config.rope_base(), 40)
    expected = np.stack(
        [ReferenceLlama(config, tiny.params(config)).feed(row, rope) for row in tokens]
    )
    assert 0.3 < expected.std() < 5, "logits of order one"
    np.testing.assert_allclose(logits, expected, atol=3e-5)


def test_activations_by_name():
    x = np.linspace(-6, 6, 101)
    assert set(ACTIVATIONS) == set(reference_llama.ACTIVATIONS)
    for name in ACTIVATIONS:
        np.testing.assert_allclose(
            ACTIVATIONS[name](jnp.asarray(x, jnp.float32)),
            reference_llama.ACTIVATIONS[name](x),
            atol=2e-6,
        )


@pytest.mark.parametrize("attention", [None, SelfExtend(4, 8)])
def test_no_token_sees_the_future_and_every_token_sees_the_past(attention):
    lm = tiny.lm() if attention is None else tiny.lm(attention=attention)
    tokens = tiny.tokens(1, 32)
    before = np.asarray(lm.logits(tokens))
    for index in (0, 13, 31):
        changed = tokens.copy()
        changed[0, index] = (changed[0, index] + 1) % tiny.VOCAB
        difference = abs(np.asarray(lm.logits(changed)) - before).max(-1)[0]
        assert (difference[:index] == 0).all()
        assert (difference[index:] > 1e-4).all()


def test_packed_documents_do_not_see_each_other():
    lm = tiny.lm()
    first = tiny.tokens(1, 13, 1)
    second = tiny.tokens(1, 11, 2)
    packed = lm.logits(
        np.concatenate([first, second], 1),
        segment_ids=[[1] * 13 + [2] * 11],
        positions=[*range(13), *range(11)],
    )
    np.testing.assert_allclose(packed[:, :13], lm.logits(first), atol=2e-5)
    np.testing.assert_allclose(packed[:, 13:], lm.logits(second), atol=2e-5)


TWELVE = pytest.param(
    (1,) * 12, id="twelve, whose keys sort as text 0, 1, 10, 11, 2", marks=pytest.mark.check
)


@pytest.mark.parametrize("sizes", [pytest.param((2, 3), id="two"), TWELVE])
def test_cutting_layers_into_segments_changes_no_number(sizes: tuple[int, ...]):
    config = tiny.config(
        num_hidden_layers=sum(sizes), hidden_size=32, intermediate_size=32, head_dim=8
    )
    params = tiny.params(config)
    starts = np.cumsum([0, *sizes])
    cut = {
        str(i): jax.tree.map(lambda x, a=a, n=n: x[a : a + n], params["segments"]["0"])
        for i, (a, n) in enumerate(zip(starts, sizes, strict=False))
    }
    tokens = tiny.tokens(1, 16)
    in_one = LM(config, params, None).logits(tokens)
    in_many = LM(config, {**params, "segments": cut}, None).logits(tokens)
    np.testing.assert_allclose(in_one, in_many, atol=1e-5 * float(abs(in_one).max()))
    assert jax.tree.map(jnp.shape, cut) == jax.tree.map(
        lambda x: x.shape, param_shapes(config, segments=sizes)["segments"]
    )


def test_bfloat16_is_close_and_float32_parts_stay():
    lm = tiny.lm()
    tokens = tiny.tokens(2, 48)
    exact = np.asarray(lm.logits(tokens))
    rough = np.asarray(dataclasses.replace(lm, dtype="bfloat16").logits(tokens))
    assert rough.dtype == np.float32
    error = abs(rough - exact)
    assert 1e-4 < error.mean() < 0.03 * exact.std()
    assert error.max() < 0.25 * exact.std()


def test_bfloat16_embedding_gradients_add_up_in_float32():
    """A token that occurs 512 times: a bfloat16 sum of its gradients would stop growing."""
    params = tiny.params()
    tokens = jnp.zeros((1, 512), jnp.int32)

    def total(params, dtype):
        return bind(tiny.CONFIG, params).embed_tokens(tokens, dtype).astype(jnp.float32).sum()

    gradient = jax.grad(total)(params, "bfloat16")["embed_tokens"]["embedding"]
    assert gradient.dtype == jnp.float32
    assert (gradient[0] == 512).all()


def test_initial_parameters():
    config = tiny.config(hidden_size=128, attention_bias=True, num_hidden_layers=3)
    params = jax.tree.map(np.asarray, init_params(config, 3))
    shapes = param_shapes(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    layers = params["segments"]["0"]
    assert (params["norm"]["weight"] == 1).all()
    assert (layers["self_attn"]["q_proj"]["bias"] == 0).all()
    for kernel in (
        params["embed_tokens"]["embedding"],
        params["lm_head"]["kernel"],
        layers["mlp"]["up_proj"]["kernel"],
    ):
        assert abs(kernel.mean()) < 1e-3
        assert kernel.std() == pytest.approx(0.02, rel=0.05)
    up_proj = layers["mlp"]["up_proj"]["kernel"]
    assert (up_proj[0] != up_proj[1]).any()
    again = np.asarray(init_params(config, 3, "bfloat16")["lm_head"]["kernel"])
    reseeded = np.asarray(init_params(config, 4)["lm_head"]["kernel"])
    assert (again == params["lm_head"]["kernel"].astype(jnp.bfloat16)).all()
    assert (reseeded != params["lm_head"]["kernel"]).any()


def test_an_lm_refuses_bad_options_and_tokens():
    lm = tiny.lm()
    for options, message in (
        ({"kernel": "flash"}, "kernel 'flash'"),
        ({"dtype": "float99"}, "dtype 'float99'"),
        ({"angles": "half"}, "angles 'half'"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(lm, **options)
    for tokens, message in (
        ([[]], "not empty"),
        ([1, 2], "batch, length"),
        ([[1.5]], "whole numbers"),
        ([[97]], "0..96"),
        ([[-1]], "is this the model's tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.logits(tokens)
    with pytest.raises(ValueError, match="at least two tokens"):
        lm.loss([[1]])
    with pytest.raises(ValueError, match="changes training only"):
        lm.with_method(tiny)


def test_with_method_shares_the_weights():
    lm = tiny.lm()
    tokens = tiny.tokens(1, 40)
    stretched = lm.with_method(Linear(2.0), SelfExtend(2, 8))
    assert stretched.params is lm.params
    assert stretched.scaling == Linear(2.0)
    assert stretched.attention == SelfExtend(2, 8)
    assert abs(stretched.logits(tokens) - lm.logits(tokens)).max() > 0.01
    same = lm.with_method(Linear(1.0), SelfExtend(1, 8))
    np.testing.assert_allclose(same.logits(tokens), lm.logits(tokens), atol=2e-5)
