"""Decoders of other families than Llama: shapes, adapters, chunks and the monitor's logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal
from ctxext.model.config import SHAPES
from ctxext.model.decoder import param_shapes
from ctxext.model.loss import batch_loss
from ctxext.model.parts import Parts
from ctxext.model.trainable import Full, LastLayers, LoRA
from ctxext.rope import Unscaled, rotation_at
from support import tiny

FALCON = Parts(norm="layer", norm_bias=True, gated=False, parallel=True)
MPT = Parts(norm="layer", gated=False, clip_qkv=1.5, alibi_exponent=8.0)
MIXED = Parts(
    qk_norm=True, sliding_window=9, windowed=(False, True), rotary=(True, False), qkv_bias=True
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "batch"}, "parts.norm must be rms or layer"),
        ({"norm_bias": True}, "parts.norm_bias is of LayerNorm"),
        ({"shared_norm": True}, "parts.shared_norm is of a parallel block"),
        ({"clip_qkv": 0.0}, "parts.clip_qkv must be positive"),
        ({"sliding_window": 0}, "parts.sliding_window must be at least 1"),
        ({"windowed": (True, False)}, "parts.sliding_window is not given"),
        ({"sliding_rope_theta": 9.0}, "of layers with a window, but parts.sliding_window is not"),
        ({"sliding_rope_theta": 9.0, "sliding_window": 4}, "every layer has the window"),
        ({"alibi_exponent": 8.0, "rotary": (True, True)}, "layers with ALiBi do not rotate"),
        ({"rotary": (True,)}, "parts.rotary is for 1 layers, but num_hidden_layers is 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.config(parts=Parts(**changes))


@pytest.mark.parametrize("name", ["mistral-7b", "qwen3-8b", "falcon-40b", "mpt-30b"])
def test_a_step_of_a_real_shape_can_be_traced(name):
    config = SHAPES[name]
    ints = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    names = ("tokens", "targets", "positions", "segment_ids")
    batch: dict[str, jax.ShapeDtypeStruct] = dict.fromkeys(names, ints)
    batch["weights"] = jax.ShapeDtypeStruct((1, 4096), jnp.float32)
    loss = functools.partial(
        batch_loss,
        config=config,
        attention=Causal(),
        kernel="blocked",
        dtype="bfloat16",
        remat="full",
    )
    rotation = rotation_at(Unscaled(), config.rope_base(), 4096)
    nll, sums = jax.eval_shape(loss, param_shapes(config), batch, rotation)
    assert (nll.shape, sums["weight"].shape) == ((), ())


def batch_and_loss(config, trainable):
    tokens = tiny.tokens(2, 24)
    batch = tiny.next_token_batch(tokens)
    rotation = rotation_at(Unscaled(), config.rope_base(), tokens.shape[1])

    def loss(params, remat):
        params = trainable.materialize(params, {})
        return tiny.loss(params, batch, rotation, config=config, remat=remat)

    return loss


@pytest.mark.check
@pytest.mark.parametrize("parts", [FALCON, MPT, MIXED], ids=["falcon", "mpt", "mixed"])
def test_adapters_change_nothing_at_first_and_get_gradients_everywhere(parts):
    config = tiny.config(parts=parts, hidden_act="silu" if parts.gated else "gelu")
    targets = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    trainable = LoRA(rank=2, targets=targets, modules_to_save=("norm",))
    base = tiny.params(config)
    params = trainable.init(base, 0)
    loss = batch_and_loss(config, trainable)
    value, gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, "full")
    plain = batch_and_loss(config, LastLayers(2))
    np.testing.assert_allclose(value, jax.jit(plain, static_argnums=1)(base, "none"), rtol=1e-6)
    segment = gradients["segments"]["0"]
    for target in targets:
        block = "mlp" if target in ("up_proj", "down_proj") else "self_attn"
        assert np.abs(segment[block][target]["lora_b"]).max() > 1e-3, target
    trained, _ = trainable.shapes(config)
    has_bias = "bias" in trained["norm"]
    assert has_bias == parts.norm_bias


@pytest.mark.check
@pytest.mark.parametrize("parts", [FALCON, MPT, MIXED], ids=["falcon", "mpt", "mixed"])
def test_inputs_of_layers_that_wait_on_the_host_change_no_gradient(parts):
    config = tiny.config(parts=parts, hidden_act="silu" if parts.gated else "gelu")
    params = tiny.params(config)
    loss = jax.jit(jax.value_and_grad(batch_and_loss(config, Full())), static_argnums=1)
    value, gradients = loss(params, "full")
    same_value, same_gradients = loss(params, "offload")
    np.testing.assert_allclose(same_value, value, rtol=1e-6)
    trees = (gradients, same_gradients)
    for expected, actual in zip(*map(jax.tree.leaves, trees), strict=True):
        tolerance = 1e-5 * float(abs(expected).max())
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.check
def test_two_segments_of_mixed_layers_are_one():
    """The kinds of layers count from the first layer of the model, not of a segment."""
    config = tiny.config(
        num_hidden_layers=4,
        parts=Parts(sliding_window=5, windowed=(True, False, False, True)),
    )
    params = tiny.params(config)
    one = batch_and_loss(config, LastLayers(4))
    two = batch_and_loss(config, LastLayers(1))
    cut = LastLayers(1).init(params, 0)
    np.testing.assert_allclose(one(params, "none"), two(cut, "none"), rtol=1e-6)
