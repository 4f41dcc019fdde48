"""How other programs read a config.json: numbers of transformers, and those of users' reports."""

import itertools

import pytest

from ctxext.prove.rope_readers import (
    RopeConfig,
    _longrope_right,
    _yarn_right,
    rope_incompatibilities,
)


def config(window=16384, *, old=False, **spec) -> dict:
    spec = {"original_max_position_embeddings": 4096, "rope_theta": 10000.0, **spec}
    if old:
        return {"max_position_embeddings": window, "rope_scaling": spec}
    return {
        "max_position_embeddings": window,
        "rope_theta": 10000.0,
        "rope_scaling": spec,
        "rope_parameters": spec,
    }


def effects(*args, **spec) -> dict[str, str]:
    return {known.reader: known.effect for known in rope_incompatibilities(config(*args, **spec))}


@pytest.mark.usefixtures("readers")
def test_the_right_attention_factor_is_that_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def theirs(settings):
        loaded = LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=1, **settings)
        compute = ROPE_INIT_FUNCTIONS[loaded.rope_parameters["rope_type"]]
        return compute(loaded, "cpu", seq_len=1)[1]

    choices = itertools.product((2.0, 4.0, 64.0), (None, 1.0, 1.3), (None, 0.7, 1.0), (None, 1.0))
    for factor, attention_factor, mscale, all_dim in choices:
        spec = {"attention_factor": attention_factor, "mscale": mscale, "mscale_all_dim": all_dim}
        given = {key: value for key, value in spec.items() if value is not None}
        settings = config(rope_type="yarn", factor=factor, **given)
        assert _yarn_right(RopeConfig.of(settings)) == pytest.approx(theirs(settings), rel=1e-6)
    lists = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    for factor, attention_factor in itertools.product((None, 4.0, 8.0), (None, 1.1)):
        spec = {"factor": factor, "attention_factor": attention_factor}
        given = {key: value for key, value in spec.items() if value is not None}
        settings = config(rope_type="longrope", **lists, **given)
        assert _longrope_right(RopeConfig.of(settings)) == pytest.approx(theirs(settings), rel=1e-6)


def test_plain_yarn_is_read_alike():
    assert effects(rope_type="yarn", factor=4.0) == {}
    assert effects(rope_type="default") == {}
    given = {"attention_factor": 0.1 * 1.3862943611198906 + 1}
    assert effects(rope_type="yarn", factor=4.0, **given) == {}


def test_the_attention_factor_is_read_five_ways():
    """The numbers are those of the reports that the rules name."""
    # factor 64 and attention_factor 1.0, as poolside/Laguna-XS.2 has it
    laguna = effects(262144, rope_type="yarn", factor=64.0, attention_factor=1.0)
    wrong = "runs yarn with the attention factor 1.4159 instead of 1.0000"
    assert laguna == dict.fromkeys(
        (
            "vLLM before September 2026",
            "SGLang",
            "mlx-lm before July 2026",
            "llama.cpp's converter",
        ),
        wrong,
    )
    # factor 16 with both mscales 1, as Ministral 3 has it
    ministral = effects(65536, rope_type="yarn", factor=16.0, mscale=1.0, mscale_all_dim=1.0)
    wrong = "runs yarn with the attention factor 1.2773 instead of 1.0000"
    assert ministral == dict.fromkeys(
        ("vLLM before September 2026", "exllamav3 after 1.2.1", "llama.cpp's converter"), wrong
    )
    # attn_factor is a multiplier where it is read at all: 1.4852 squared
    twice = effects(524288, rope_type="yarn", factor=128.0, attn_factor=1.4852)
    assert twice["SGLang"].startswith("runs yarn with the attention factor 2.2058 instead of 1.48")
    # one mscale alone is ignored by transformers
    alone = effects(rope_type="yarn", factor=4.0, mscale=0.707)
    assert set(alone) == {"mlx-lm before July 2026", "mlx-lm"}


def test_other_fields_of_yarn():
    stretched = effects(8192, rope_type="yarn", factor=4.0)
    assert "2 instead of 4" in stretched["exllamav3"]
    # Ministral's scaling of queries by their position
    by_position = {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    assert "exllamav3 after 1.2.1" not in effects(rope_type="yarn", factor=4.0, **by_position)
    rounded = effects(rope_type="yarn", factor=4.0, truncate=False)
    assert set(rounded) == {"mlx-lm", "llama.cpp's converter"}
    assert set(effects(rope_type="yarn", factor=4.0, beta_fast=8)) == {"llama.cpp"}


def test_the_longest_text():
    """What vLLM 0.33 and SGLang 0.5.23 derive from the two windows and the factor."""
    shorter = effects(4096, rope_type="yarn", factor=4.0)
    assert shorter["vLLM 0.33"] == shorter["SGLang"]
    assert shorter["SGLang"].startswith("accepts no text of more than 4096 tokens, where factor x")
    longer = "takes texts of 65536 tokens, max_position_embeddings times the factor once more; give"
    assert effects(rope_type="linear", factor=4.0) == {"vLLM": f"{longer} --max-model-len 16384"}
    assert effects(4096, rope_type="linear", factor=4.0) == {}
    # The key next to the parameters, as ctxext writes it: SGLang looks for it in them.
    spec = {"rope_type": "linear", "factor": 4.0}
    outer = {"max_position_embeddings": 16384, "original_max_position_embeddings": 4096}
    found = {
        known.reader: known.effect
        for known in rope_incompatibilities({**outer, "rope_scaling": spec})
    }
    assert found == {
        "vLLM": f"{longer} --max-model-len 16384",
        "SGLang": f"{longer} --context-length 16384",
    }
    lists = {"short_factor": [2.0] * 8, "long_factor": [2.0] * 8, "factor": 4.0}
    spec = {"rope_type": "longrope", "original_max_position_embeddings": 4096, **lists}
    (known,) = rope_incompatibilities({**outer, "rope_scaling": spec})
    assert known.effect == "takes texts of 4096 tokens only; give --max-model-len 16384"


def test_longrope():
    same = {"short_factor": [2.0] * 8, "long_factor": [2.0] * 8, "rope_type": "longrope"}
    own = (1 + 1 / 6) ** 0.5  # sqrt(1 + ln 4 / ln 4096)
    assert effects(**same, factor=4.0) == {}
    carried = effects(**same, factor=4.0, attention_factor=1.0, long_mscale=1.0)
    wrong = f"runs longrope with the attention factor {own:.4f} instead of 1.0000"
    assert carried["mlx-lm"] == carried["exllamav3"] == wrong
    assert "vLLM" not in carried
    assert effects(**same, factor=4.0, attention_factor=1.0)["vLLM"] == wrong
    different = effects(**{**same, "short_factor": [1.0] * 8}, factor=4.0)
    assert set(different) == {"transformers", "SGLang", "vLLM", "mlx-lm", "exllamav3"}
    assert {"transformers 5", "mlx-lm"} <= effects(**{**same, "rope_type": "su"}).keys()


def test_scalings_that_readers_drop_or_refuse():
    assert effects(rope_type="proportional", partial_rotary_factor=0.5) == {}
    without = "runs proportional without its factor"
    assert effects(rope_type="proportional", factor=4.0) == {"vLLM": without, "SGLang": without}
    assert set(effects(rope_type="dynamic", factor=4.0)) == {
        "vLLM",
        "SGLang",
        "mlx-lm",
        "exllamav3",
        "llama.cpp's converter",
    }
    only_new = config(rope_type="yarn", factor=4.0)
    del only_new["rope_scaling"], only_new["rope_theta"]
    only_new["rope_parameters"] |= {"rope_theta": 5e5}
    readers = [known.reader for known in rope_incompatibilities(only_new)]
    assert readers == ["transformers 4", "mlx-lm"] * 2
    assert not list(rope_incompatibilities(config(old=True, rope_type="yarn", factor=4.0)))


def test_every_rule_names_its_source():
    settings = [
        config(rope_type="dynamic", factor=4.0),
        config(rope_type="yarn", factor=8.0, attention_factor=1.3, truncate=False, beta_fast=8),
        config(rope_type="su", short_factor=[1.0], long_factor=[2.0], attention_factor=2.0),
    ]
    known = [k for one in settings for k in rope_incompatibilities(one)]
    assert len({k.reader for k in known}) >= 8
    for one in known:
        assert one.source.startswith(("https://github.com/", "tested in it, ")) or "." in one.source
