"""config.json of published models: read as transformers reads it, or refused as ambiguous."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from ctxext.interop import hf
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.ntk import DynamicNTK
from ctxext.methods.yarn import Yarn
from ctxext.model.config import SHAPES
from ctxext.rope import RopeScaling, Unscaled

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA1 = LLAMA | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "pad_token_id": 0}
LLAMA2 = LLAMA | {
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rope_scaling": None,
}
LLAMA3 = LLAMA | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def yarn(factor: float) -> dict[str, Any]:
    return {
        "factor": factor,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
        "finetuned": True,
    }


def linear(factor: float) -> dict[str, Any]:
    return {"factor": factor, "type": "linear"}


# name -> (file, the equal entry of SHAPES or None, scaling, original window, extended window)
PUBLISHED: dict[str, tuple[dict[str, Any], str | None, RopeScaling, int, int]] = {
    "Llama 1": (LLAMA1, "llama1-7b", Unscaled(), 2048, 2048),
    "Llama 1, first conversion": (
        {k: v for k, v in LLAMA1.items() if k != "max_position_embeddings"}
        | {"architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048, "pad_token_id": -1},
        "llama1-7b",
        Unscaled(),
        2048,
        2048,
    ),
    "Alpaca": (
        LLAMA1 | {"vocab_size": 32001, "pad_token_id": 32000, "torch_dtype": "float32"},
        None,
        Unscaled(),
        2048,
        2048,
    ),
    "Vicuna 1.3": (LLAMA1 | {"max_sequence_length": 2048}, "llama1-7b", Unscaled(), 2048, 2048),
    "Llama 2": (LLAMA2, "llama2-7b", Unscaled(), 4096, 4096),
    "Llama 2 70B": (
        LLAMA2
        | {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_attention_heads": 64,
            "num_hidden_layers": 80,
            "num_key_value_heads": 8,
        },
        "llama2-70b",
        Unscaled(),
        4096,
        4096,
    ),
    "YaRN Llama 2 64k": (
        LLAMA2
        | {
            "_name_or_path": "NousResearch/Llama-2-7b-hf",
            "max_position_embeddings": 65536,
            "rope_scaling": yarn(16.0),
            "auto_map": {"AutoModelForCausalLM": "modeling_llama_together_yarn.LlamaForCausalLM"},
            "pad_token_id": 0,
        },
        "llama2-7b",
        Yarn(16.0),
        4096,
        65536,
    ),
    "YaRN Llama 2 128k": (
        LLAMA2 | {"max_position_embeddings": 131072, "rope_scaling": yarn(32.0)},
        "llama2-7b",
        Yarn(32.0),
        4096,
        131072,
    ),
    "Together 32K": (
        LLAMA2 | {"max_position_embeddings": 32768, "rope_scaling": linear(8.0)},
        "llama2-7b",
        Linear(8.0),
        4096,
        32768,
    ),
    "Vicuna 1.5 16k": (
        LLAMA2 | {"max_sequence_length": 16384, "rope_scaling": linear(4.0), "pad_token_id": 0},
        "llama2-7b",
        Linear(4.0),
        4096,
        16384,
    ),
    "Vicuna 1.5 16k, one length": (
        LLAMA2 | {"rope_scaling": linear(4.0)},
        "llama2-7b",
        Linear(4.0),
        4096,
        16384,
    ),
    "Vicuna 1.5 16k, other length": (
        LLAMA2 | {"max_position_embeddings": 16384, "rope_scaling": linear(4.0)},
        "llama2-7b",
        Linear(4.0),
        4096,
        16384,
    ),
    "LongChat 1.5 32k": (
        LLAMA2 | {"rope_scaling": linear(8.0)},
        "llama2-7b",
        Linear(8.0),
        4096,
        32768,
    ),
    "LongLoRA 100k": (
        LLAMA2 | {"rope_scaling": linear(25.0), "vocab_size": 32001},
        None,
        Linear(25.0),
        4096,
        102400,
    ),
    "LongAlpaca 7B": (
        LLAMA2 | {"rope_scaling": linear(8.0), "vocab_size": 32001, "pad_token_id": 32000},
        None,
        Linear(8.0),
        4096,
        32768,
    ),
    "Code Llama": (
        LLAMA2 | {"max_position_embeddings": 16384, "rope_theta": 1000000, "vocab_size": 32016},
        "codellama-7b",
        Unscaled(),
        16384,
        16384,
    ),
    "Code Llama 34B": (
        LLAMA2
        | {
            "hidden_size": 8192,
            "intermediate_size": 22016,
            "max_position_embeddings": 16384,
            "num_attention_heads": 64,
            "num_hidden_layers": 48,
            "num_key_value_heads": 8,
            "rope_theta": 1000000,
        },
        "codellama-34b",
        Unscaled(),
        16384,
        16384,
    ),
    "TinyLlama": (
        LLAMA2
        | {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "max_position_embeddings": 2048,
            "num_hidden_layers": 22,
            "num_key_value_heads": 4,
            "torch_dtype": "float32",
        },
        "tinyllama-1.1b",
        Unscaled(),
        2048,
        2048,
    ),
    "Llama 3": (LLAMA3, "llama3-8b", Unscaled(), 8192, 8192),
    "Llama 3.1": (
        LLAMA3 | {"max_position_embeddings": 131072, "rope_scaling": LLAMA31, "mlp_bias": False},
        "llama3.1-8b",
        Llama3(8.0),
        8192,
        131072,
    ),
    "Llama 3.1 Instruct": (
        LLAMA3
        | {
            "max_position_embeddings": 131072,
            "rope_scaling": LLAMA31,
            "mlp_bias": False,
            "eos_token_id": [128001, 128008, 128009],
        },
        None,
        Llama3(8.0),
        8192,
        131072,
    ),
    "Llama 3.2 1B": (
        LLAMA3
        | {
            "head_dim": 64,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "num_hidden_layers": 16,
            "rope_scaling": LLAMA31 | {"factor": 32.0},
            "tie_word_embeddings": True,
        },
        "llama3.2-1b",
        Llama3(32.0),
        8192,
        131072,
    ),
    "Llama 3.2 3B": (
        LLAMA3
        | {
            "head_dim": 128,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "num_attention_heads": 24,
            "num_hidden_layers": 28,
            "rope_scaling": LLAMA31 | {"factor": 32.0},
            "tie_word_embeddings": True,
        },
        "llama3.2-3b",
        Llama3(32.0),
        8192,
        131072,
    ),
    "dynamic NTK": (
        LLAMA2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "llama2-7b",
        DynamicNTK(2.0),
        4096,
        8192,
    ),
    "yarn that declares no more than L": (
        LLAMA2 | {"rope_scaling": yarn(4.0)},
        "llama2-7b",
        Yarn(4.0),
        4096,
        16384,
    ),
    "written by transformers 5": (
        {k: v for k, v in LLAMA2.items() if k not in ("rope_scaling", "torch_dtype")}
        | {
            "dtype": "float16",
            "max_position_embeddings": 16384,
            "head_dim": 128,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        },
        "llama2-7b",
        Linear(4.0),
        4096,
        16384,
    ),
}


def read(tmp_path, data):
    (tmp_path / "config.json").write_text(json.dumps(data))
    return hf.read_config(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config(tmp_path, name):
    data, shape, scaling, window, length = PUBLISHED[name]
    config, read_scaling = read(tmp_path, data)
    assert read_scaling == scaling
    assert config.max_position_embeddings == window
    assert hf.window(tmp_path) == length
    if shape:
        # The padding token does not affect the model's function and may differ.
        pad = SHAPES[shape].pad_token_id
        assert dataclasses.replace(config, pad_token_id=pad) == SHAPES[shape]
    again = hf.config_json(config, read_scaling, seq_len=length, dtype="float16")
    assert read(tmp_path, again) == (config, read_scaling)
    assert hf.window(tmp_path) == length


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_reads_the_same_frequencies(tmp_path, name):
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    data, _, _, _, length = PUBLISHED[name]
    config, scaling = read(tmp_path, data)
    theirs = transformers.LlamaConfig(**json.loads(json.dumps(data)))
    assert theirs.num_key_value_heads == config.num_key_value_heads
    assert theirs.head_dim == config.head_dim
    rotary = LlamaRotaryEmbedding(theirs)
    # Dynamic types adapt to the length of this call.
    rotary(torch.zeros(1), torch.tensor([[length - 1]]))
    ours = scaling.rope(config.rope_base(), length)
    np.testing.assert_allclose(rotary.inv_freq.numpy(), ours.inv_freq, rtol=1e-6)
    assert rotary.attention_scaling == pytest.approx(ours.attention_factor, rel=1e-7)


def test_the_numbers_of_yarn_and_llama_31(tmp_path):
    """By the papers' formulas: m = 0.1 ln 16 + 1; llama3 divides the lowest frequencies by 8."""
    config, scaling = read(tmp_path, PUBLISHED["YaRN Llama 2 64k"][0])
    rope = scaling.rope(config.rope_base(), 65536)
    assert rope.attention_factor == pytest.approx(0.1 * math.log(16) + 1)
    assert rope.inv_freq[[0, -1]] == pytest.approx([1.0, 10000 ** (-126 / 128) / 16])
    config, scaling = read(tmp_path, PUBLISHED["Llama 3.1"][0])
    rope = scaling.rope(config.rope_base(), 131072)
    assert rope.attention_factor == 1.0
    assert rope.inv_freq[[0, -1]] == pytest.approx([1.0, 500000 ** (-126 / 128) / 8])


@pytest.mark.parametrize(
    "changes, message",
    [
        # Either Llama 1 times two, or Llama 2 times two as in LongLoRA's 8k: the frequencies are
        # the same, but the windows are not.
        (
            {"rope_scaling": linear(2.0)},
            "may start from 2048 tokens or from 4096; add original_max_position",
        ),
        (
            {"rope_scaling": linear(3.0), "max_position_embeddings": 16384},
            "not a multiple of the linear factor 3",
        ),
        # LongChat 16k divides positions by eight in its own code, and no file declares it.
        (
            {"max_position_embeddings": 2048, "max_sequence_length": 16384},
            "max_sequence_length 16384 is longer than max_position_embeddings 2048, .* factor 8",
        ),
        (
            {"rope_scaling": linear(4.0), "max_sequence_length": 8192},
            "max_sequence_length 8192 is longer",
        ),
        ({"max_position_embeddings": None}, "max_position_embeddings must be an integer, got None"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be an integer from 1"),
        (
            {"max_position_embeddings": 2**40},
            "must be an integer from 1 to 2147483647, got 1099511627776",
        ),
        (
            {"rope_scaling": yarn(4.0), "max_position_embeddings": 2048},
            "original_max_position_embeddings 4096 is longer than max_position_embeddings 2048",
        ),
        (
            {"rope_scaling": {**yarn(4.0), "original_max_position_embeddings": 4096.0}},
            "must be an integer",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 16.0, "finetuned": True}},
            "'yarn' needs original_max_position_embeddings",
        ),
        (
            {"rope_scaling": {**yarn(16.0), "type": "dynamic-yarn"}},
            "'dynamic-yarn' is not supported",
        ),
        ({"rope_scaling": {"type": "ntk", "alpha": 2.0}}, "'ntk' is not supported"),
        ({"rope_scaling": {"type": ["yarn"], "factor": 2.0}}, "type must be a name"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 1e9}},
            "more than the 2147483647 positions",
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}},
            "'longrope' needs original_max_position_embeddings",
        ),
        ({"rope_theta": 1}, "rope_theta must be more than 1"),
        (
            {"vocab_size": 32000, "pad_token_id": 32000},
            "pad_token_id 32000 is outside the vocabulary of 32000",
        ),
        ({"eos_token_id": [2, 40000]}, r"eos_token_id \(2, 40000\) is outside the vocabulary"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id must be a token id or a list of them"),
        ({"hidden_size": 2**40}, "hidden_size must be an integer from 1 to 16777216"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number between 0 and 1"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized weights"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x[:40],
)
def test_an_ambiguous_config_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, LLAMA2 | changes)
    assert "\n" not in str(error.value)
    assert "config.json" in str(error.value)


def test_su_of_the_first_longrope_files_is_read(tmp_path):
    """transformers 5 no longer knows the name `su`, but the lists are enough."""
    long = np.linspace(1, 8, 64).tolist()
    spec = {"type": "su", "short_factor": [1.0] * 64, "long_factor": long}
    data = LLAMA2 | {
        "original_max_position_embeddings": 4096,
        "max_position_embeddings": 32768,
        "rope_scaling": spec,
    }
    config, scaling = read(tmp_path, data)
    base = config.rope_base()
    np.testing.assert_allclose(scaling.rope(base, 32768).inv_freq, base.inv_freq / long, rtol=1e-15)
    assert scaling.rope(base, 32768).attention_factor == pytest.approx(
        math.sqrt(1 + math.log(8) / math.log(4096))
    )
    assert config.max_position_embeddings == 4096
    assert hf.window(tmp_path) == 32768
