"""Keys of config.json that change nothing, and those that would: what transformers computes."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ctxext.interop import hf
from ctxext.interop.families.llama import ACTIVATION_NAMES
from ctxext.model.config import ACTIVATIONS
from ctxext.prove.reference.llama import ACTIVATIONS as REFERENCE
from support.llamas import TINY, WINDOW, torch_llama

ORIGINAL = {"original_max_position_embeddings": WINDOW}
YARN = {"rope_type": "yarn", "factor": 2.0, **ORIGINAL}
FULL = ["full_attention"] * TINY.num_hidden_layers
SLIDING = ["sliding_attention"] * TINY.num_hidden_layers
IDS = np.random.default_rng(0).integers(0, TINY.vocab_size, (1, 40))

NEUTRAL: dict[str, dict[str, Any]] = {
    "no scaling": {"rope_scaling": None},
    "empty scaling": {"rope_scaling": {}},
    "default": {"rope_scaling": {"rope_type": "default"}},
    "default by its older name": {"rope_scaling": {"type": "default"}},
    "default, factor 1": {"rope_scaling": {"rope_type": "default", "factor": 1.0}},
    "no type, factor 1": {"rope_scaling": {"factor": 1.0}},
    "linear by 1": {"rope_scaling": {"type": "linear", "factor": 1.0}},
    "yarn by 1": {"rope_scaling": {"rope_type": "yarn", "factor": 1.0}},
    "llama3 by 1": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 1.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    },
    "linear with the factors of yarn": {
        "rope_scaling": {
            "rope_type": "linear",
            "factor": 1.0,
            "attention_factor": 1.0,
            "attn_factor": 1.0,
            "extrapolation_factor": 1.0,
            "mscale": None,
        }
    },
    "whole heads": {"partial_rotary_factor": 1.0},
    "whole heads in the scaling": {
        "rope_scaling": {"rope_type": "default", "partial_rotary_factor": 1.0}
    },
    "swish": {"hidden_act": "swish"},
    "biases": {"attention_bias": False, "mlp_bias": False},
    "dropout": {"attention_dropout": 0},
    "tensor parallelism of pre-training": {"pretraining_tp": 2},
    "no window": {"sliding_window": None, "use_sliding_window": False},
    "a window of the whole context": {"sliding_window": 256},
    "all layers are full": {"layer_types": FULL, "sliding_window": 8, "attention_chunk_size": 8},
    "causal": {"is_causal": True},
    "not quantized": {"quantization_config": None},
}
# Extra keys -> the message, for what changes logits or generated tokens in transformers.
EFFECTIVE: dict[str, tuple[dict[str, Any], str]] = {
    "window": ({"sliding_window": 8}, "sliding_window 8, .* set use_sliding_window to false"),
    "some layers": ({"layer_types": SLIDING, "sliding_window": 8}, "layer_types has sliding_atten"),
    "chunks": ({"attention_chunk_size": 8}, "attention_chunk_size"),
    "not causal": ({"is_causal": False}, "is_causal false"),
    "activation": ({"hidden_act": "relu6"}, "hidden_act 'relu6' is not supported"),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("neutral") / "model"
    torch_llama(path)
    return path


@pytest.fixture(scope="module")
def settings(directory: Path) -> dict[str, Any]:
    data = json.loads((directory / "config.json").read_text())
    # The form of transformers 4, which the extra keys are written in.
    del data["rope_parameters"]
    return data | {"rope_theta": 10000.0, "max_position_embeddings": 256}


def write(directory: Path, data: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(data))


def theirs(directory: Path, data: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """The logits of transformers for IDS, and the tokens that it generates after them."""
    write(directory, data)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager"
    ).eval()
    ids = torch.tensor(IDS)
    mask = torch.ones_like(ids)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0}
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits.numpy()
        text = model.generate(ids, attention_mask=mask, **options)
    return logits, text[0, IDS.shape[1] :].tolist()


@pytest.fixture(scope="module")
def plain(directory, settings) -> tuple[np.ndarray, list[int]]:
    """What transformers computes without extra keys."""
    return theirs(directory, settings)


@pytest.mark.parametrize("name", NEUTRAL)
def test_keys_without_effect_are_accepted(name, directory, settings, plain):
    """transformers computes the same with the keys, and so do we: the same shape and scaling."""
    plain_logits, plain_text = plain
    write(directory, settings)
    config, scaling = hf.read_config(directory)
    logits, text = theirs(directory, settings | NEUTRAL[name])
    np.testing.assert_array_equal(logits, plain_logits)
    assert text == plain_text
    read, read_scaling = hf.read_config(directory)
    assert read == config
    ropes = [s.rope(config.rope_base(), 256) for s in (scaling, read_scaling)]
    assert ropes[0].equals(ropes[1])
    assert hf.window(directory) == 256


@pytest.mark.parametrize("name", EFFECTIVE)
def test_keys_with_an_effect_are_refused_by_name(name, directory, settings, plain):
    changes, message = EFFECTIVE[name]
    plain_logits, plain_text = plain
    logits, text = theirs(directory, settings | changes)
    assert not np.array_equal(logits, plain_logits) or text != plain_text
    with pytest.raises(ValueError, match=message):
        hf.read_config(directory)


def test_a_window_that_is_switched_off_is_said(directory, settings, caplog):
    """Full attention for us; transformers 5 obeys sliding_window in a Llama all the same."""
    write(directory, settings | {"sliding_window": 8, "use_sliding_window": False})
    hf.read_config(directory)
    assert "transformers 5 reads it in a Llama all the same" in caplog.text


@pytest.mark.parametrize(
    ("keys", "attention_factor"),
    [
        ({"attn_factor": 1.0, "extrapolation_factor": 1.0, "finetuned": True}, 1.0693147),
        ({"attn_factor": 1.0, "attention_factor": 1.2}, 1.2),
        ({"attention_factor": None, "mscale": None, "beta_fast": None}, 1.0693147),
    ],
)
def test_factors_of_yarn_that_change_nothing(keys, attention_factor, directory, settings):
    """The frequencies and the factor are those that transformers computes."""
    write(directory, settings | {"rope_scaling": {**YARN, **keys}})
    config, scaling = hf.read_config(directory)
    rope = scaling.rope(config.rope_base(), 128)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    rotary = model.model.rotary_emb
    np.testing.assert_allclose(rope.inv_freq, rotary.inv_freq.numpy(), rtol=1e-6)
    assert rope.attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-6)
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attn_factor": 1.5}, r"write attention_factor 1\.60397, which is the whole factor"),
        ({"extrapolation_factor": 0.5}, "--method yarn --factor 2.0 --extrapolation-factor 0.5"),
        ({"apply_yarn_scaling": False}, "'yarn' has no apply_yarn_scaling"),
        ({"low_freq_factor": 1.0}, "'yarn' has no low_freq_factor; remove what is not needed"),
    ],
)
def test_factors_of_yarn_that_readers_disagree_on(keys, message, directory, settings):
    write(directory, settings | {"rope_scaling": {**YARN, **keys}})
    with pytest.raises(ValueError, match=message):
        hf.read_config(directory)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_other_names_of_activations_are_the_same_functions(name: str):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = transformers.activations.get_activation(name)(torch.tensor(x)).numpy()
    ours = np.asarray(ACTIVATIONS[ACTIVATION_NAMES[name]](jnp.asarray(x)))
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    np.testing.assert_allclose(REFERENCE[name](x.astype(np.float64)), expected, atol=2e-6)
