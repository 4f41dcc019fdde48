"""Named shapes against published parameter counts, and shapes that are refused."""

import dataclasses
import math

import jax
import pytest

from ctxext.model.config import SHAPES, LlamaConfig
from ctxext.model.decoder import param_shapes
from ctxext.rope import RopeBase
from support import tiny

# Parameters, as the indexes of the checkpoints count them.
PUBLISHED = {
    "llama1-7b": 6_738_415_616,
    "llama1-13b": 13_015_864_320,
    "llama1-33b": 32_528_943_616,
    "llama1-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "codellama-7b": 6_738_546_688,
    "codellama-13b": 13_016_028_160,
    "codellama-34b": 33_743_970_304,
    "codellama-70b": 68_976_910_336,
    "codellama-70b-instruct": 68_976_910_336,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.3-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b": 7_241_732_096,
    "ministral-8b": 8_019_808_256,
    "ministral3-8b": 8_489_553_920,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "smollm3-3b": 3_075_098_624,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "mpt-7b": 6_649_286_656,
    "mpt-30b": 29_957_200_896,
}


def count(config: LlamaConfig) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(param_shapes(config)))


@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes_have_the_published_size(name: str):
    assert SHAPES[name].num_parameters == count(SHAPES[name]) == PUBLISHED[name]
    assert set(SHAPES) == set(PUBLISHED)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("attention_bias", [False, True])
@pytest.mark.parametrize("mlp_bias", [False, True])
def test_the_arithmetic_counts_every_parameter(tied: bool, attention_bias: bool, mlp_bias: bool):
    config = tiny.config(
        tie_word_embeddings=tied,
        attention_bias=attention_bias,
        mlp_bias=mlp_bias,
        head_dim=24,
        num_hidden_layers=3,
    )
    assert config.num_parameters == count(config)


def test_families():
    for name, config in SHAPES.items():
        if name.startswith(("llama1", "llama2")):
            assert config.rope_theta == 1e4, name
        if name.startswith("llama3"):
            assert config.rope_theta == 5e5, name
    for size in ("7b", "13b", "34b", "70b"):
        config = SHAPES[f"codellama-{size}"]
        assert (config.rope_theta, config.max_position_embeddings) == (1e6, 16384), size
    windows = {
        name: SHAPES[name].max_position_embeddings
        for name in ("llama1-65b", "llama2-7b", "llama3.1-8b")
    }
    assert windows == {"llama1-65b": 2048, "llama2-7b": 4096, "llama3.1-8b": 8192}
    assert SHAPES["llama2-7b"].rope_base() == RopeBase(128, 1e4, 4096)
    assert all(hash(config) == hash(dataclasses.replace(config)) for config in SHAPES.values())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_key_value_heads", 3, "not a multiple"),
        ("num_key_value_heads", 0, "num_key_value_heads must be positive"),
        ("num_attention_heads", -4, "num_attention_heads must be positive"),
        ("head_dim", 15, "odd"),
        ("head_dim", 0, "head_dim must be positive"),
        ("hidden_act", "swish", "'swish' is not supported"),
        ("vocab_size", 0, "vocab_size must be positive"),
        ("num_hidden_layers", 0, "num_hidden_layers must be positive"),
    ],
)
def test_impossible_shapes_are_refused(field: str, value, message: str):
    with pytest.raises(ValueError, match=message):
        tiny.config(**{field: value})
