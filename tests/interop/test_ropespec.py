"""The rope keys of config.json, compared with transformers' own reading, and every refusal."""

import dataclasses
import json
import logging
import math
from typing import Any

import numpy as np
import pytest

from ctxext.interop import hf
from ctxext.interop.families.llama import read_config
from ctxext.interop.ropespec import LARGEST_DIVISOR, rope_from_config, rope_to_config
from ctxext.methods.abf import ABF
from ctxext.methods.custom import Custom
from ctxext.methods.giraffe import PowerBasis, TruncatedBasis
from ctxext.methods.linear import DynamicLinear, Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import DynamicLongRope, LongRope
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.ntk_by_parts import NTKByParts
from ctxext.methods.p_rope import PRope
from ctxext.methods.part_ntk import DynamicPartNTK, PartNTK
from ctxext.methods.revised_yarn import RevisedYarn
from ctxext.methods.yarn import DynamicYarn, Yarn
from ctxext.rope import Rope, RopeScaling, Unscaled
from support.llamas import FACTOR, LENGTH, TINY, WINDOW

LLAMA2 = dataclasses.replace(TINY, head_dim=128, max_position_embeddings=4096)
ORIGINAL = {"original_max_position_embeddings": WINDOW}
SPREAD = [1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
DIVISORS = tuple(np.linspace(1, 4, 64).tolist())
NATIVE = [
    Unscaled(),
    Linear(4.0),
    Linear(1.5),
    NTK(4.0),
    DynamicNTK(2.0),
    Yarn(4.0),
    Yarn(4.0, attention_factor=1.0),
    Yarn(8.0, beta_fast=64.0, beta_slow=2.0, truncate=False),
    Llama3(8.0),
    Llama3(4.0, 2.0, 8.0),
    Custom(DIVISORS, 1.25),
    LongRope(4.0, DIVISORS, DIVISORS[::-1]),
    LongRope(4.0, DIVISORS[::-1], DIVISORS, 1.25),
    ABF(5e5),
    NTKByParts(4.0, truncate=False),
]
GENERIC = [
    Yarn(4.0, extrapolation_factor=0.5),
    PartNTK(4.0),
    RevisedYarn(4.0),
    PowerBasis(4.0, 0.5),
    TruncatedBasis(4.0, 4096),
    PRope(1.0, 0.75),
]
REFUSED = {
    "DynamicLinear changes its frequencies with the length.*a static scaling": DynamicLinear(),
    "DynamicYarn changes its": DynamicYarn(4.0),
    "DynamicPartNTK changes its": DynamicPartNTK(),
    "DynamicLongRope changes its": DynamicLongRope(4.0, DIVISORS),
    "LongRope keeps plain RoPE at the first 4 positions.*export it without them": LongRope(
        4.0, DIVISORS, DIVISORS[::-1], leading_positions=4
    ),
}


def short(value) -> str:
    return str(value)[:60]


@dataclasses.dataclass(frozen=True)
class NobodyKnowsThis(RopeScaling):
    """A static method that no format has a type for; its lowest pairs do not rotate."""

    def rope(self, base, seq_len):
        return Rope(np.where(np.arange(64) < 60, base.inv_freq * 0.9, 0.0), 1.1)


@dataclasses.dataclass(frozen=True)
class FollowsLength(NobodyKnowsThis):
    depends_on_length = True


def config_json(scaling, config=LLAMA2, seq_len=8192):
    data = hf.config_json(config, scaling, seq_len=seq_len, dtype="float32")
    return json.loads(json.dumps(data, allow_nan=False))


def assert_same_rope(actual: RopeScaling, expected: RopeScaling, atol: float) -> None:
    base = LLAMA2.rope_base()
    actual_rope = actual.rope(base, 8192)
    expected_rope = expected.rope(base, 8192)
    np.testing.assert_allclose(actual_rope.inv_freq, expected_rope.inv_freq, rtol=1e-14, atol=atol)
    assert actual_rope.attention_factor == expected_rope.attention_factor


@pytest.mark.parametrize("scaling", NATIVE, ids=short)
def test_round_trip_is_exact(scaling):
    theta, window, again = rope_from_config(config_json(scaling))
    if type(scaling) in (NTK, ABF):
        # Written as plain RoPE with another theta.
        assert again == Unscaled()
        assert window == 4096
        expected = 5e5 if type(scaling) is ABF else 10000 * 4 ** (128 / 126)
        assert theta == pytest.approx(expected, rel=1e-15)
    elif type(scaling) is NTKByParts:
        assert again == Yarn(4.0, attention_factor=1.0, truncate=False)
    else:
        assert (theta, window, again) == (10000.0, 4096, scaling)


@pytest.mark.parametrize("scaling", GENERIC, ids=short)
def test_a_static_method_without_its_own_type_becomes_longrope(scaling):
    data = config_json(scaling)
    assert data["rope_scaling"]["rope_type"] == "longrope"
    assert data["max_position_embeddings"] >= 8192
    assert_same_rope(rope_from_config(data)[2], scaling, atol=2e-12)


@pytest.mark.parametrize("message", REFUSED, ids=short)
def test_methods_that_no_file_can_represent_are_refused(message):
    with pytest.raises(ValueError, match=message):
        config_json(REFUSED[message])


@pytest.mark.parametrize("at_top", [True, False])
@pytest.mark.parametrize(
    "place", ["rope_scaling su", "rope_scaling longrope", "rope_parameters longrope"]
)
def test_published_longrope_configs(place, at_top):
    """The original window is at the top or inside; the ratio of both windows is the factor."""
    key, name = place.split()
    spec = {
        "type" if key == "rope_scaling" else "rope_type": name,
        "short_factor": [1.0] * 64,
        "long_factor": list(DIVISORS),
    }
    data = {"max_position_embeddings": 131072, "rope_theta": 10000.0, key: spec}
    (data if at_top else spec)["original_max_position_embeddings"] = 4096
    theta, window, scaling = rope_from_config(data)
    assert (theta, window, scaling) == (1e4, 4096, LongRope(32.0, (1.0,) * 64, DIVISORS))
    base = LLAMA2.rope_base()
    assert scaling.rope(base, 4097).attention_factor == pytest.approx(
        math.sqrt(1 + math.log(32) / math.log(4096))
    )
    np.testing.assert_array_equal(scaling.rope(base, 4096).inv_freq, base.inv_freq)
    np.testing.assert_array_equal(scaling.rope(base, 4097).inv_freq, base.inv_freq / DIVISORS)
    assert rope_from_config(config_json(scaling, seq_len=131072)) == (theta, window, scaling)


def test_lengths_and_both_forms_come_from_one_object():
    data = config_json(Yarn(4.0))
    assert data["max_position_embeddings"] == 16384
    assert type(data["max_position_embeddings"]) is int
    assert data["original_max_position_embeddings"] == 4096
    assert data["rope_scaling"]["original_max_position_embeddings"] == 4096
    assert data["rope_parameters"] == data["rope_scaling"] | {"rope_theta": 10000.0}
    assert "attention_factor" not in data["rope_scaling"]
    assert "mscale" not in data["rope_scaling"]
    assert config_json(Yarn(4.0, attention_factor=1.0))["rope_scaling"]["attention_factor"] == 1.0
    assert config_json(DynamicNTK(4.0))["max_position_embeddings"] == 4096
    assert config_json(Linear(4.0))["max_position_embeddings"] == 16384
    assert config_json(Linear(1.5), seq_len=5000)["max_position_embeddings"] == 6144
    default = config_json(Unscaled())
    assert default["rope_scaling"] is None
    assert default["rope_parameters"]["rope_type"] == "default"
    assert default["dtype"] == default["torch_dtype"] == "float32"


def test_longrope_holds_any_static_spectrum():
    spec = config_json(NobodyKnowsThis())["rope_scaling"]
    assert spec["rope_type"] == "longrope"
    assert spec["short_factor"] == spec["long_factor"]
    assert spec["attention_factor"] == spec["short_mscale"] == spec["long_mscale"] == 1.1
    assert spec["long_factor"][-1] == LARGEST_DIVISOR
    _, _, again = rope_from_config(config_json(NobodyKnowsThis()))
    assert_same_rope(again, NobodyKnowsThis(), atol=1e-12)
    # transformers 4 misreads a yarn factor that does not give a whole window, so longrope is used.
    assert config_json(Yarn(1.3))["rope_scaling"]["rope_type"] == "longrope"
    with pytest.raises(ValueError, match="FollowsLength changes its frequencies with the length"):
        config_json(FollowsLength())


@pytest.mark.parametrize("form", ["v4", "v5", "both"])
@pytest.mark.parametrize("scaling", [*NATIVE, *GENERIC, NobodyKnowsThis()], ids=short)
def test_transformers_reads_our_frequencies(scaling, form):
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    removed = {"v4": ["rope_parameters"], "v5": ["rope_scaling", "rope_theta"], "both": []}
    data = config_json(scaling)
    for key in removed[form]:
        del data[key]
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**data))
    length = 12288 if scaling.depends_on_length else 8192
    # Dynamic types adapt to the length of this call.
    theirs(torch.zeros(1), torch.tensor([[length - 1]]))
    ours = scaling.rope(LLAMA2.rope_base(), length)
    np.testing.assert_allclose(theirs.inv_freq.numpy(), ours.inv_freq, rtol=1e-6, atol=2e-12)
    assert theirs.attention_scaling == pytest.approx(ours.attention_factor, rel=1e-7)
    base = LLAMA2.rope_base().inv_freq
    changes_frequencies = np.abs(ours.inv_freq / base - 1).max() > 1e-3
    assert changes_frequencies == (scaling != Unscaled()), "a scaling that does nothing"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "mscale": 0.7, "mscale_all_dim": 0.5},
        {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "mscale": 0.7},
        {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "beta_fast": 0, "beta_slow": 2},
        {
            "rope_type": "longrope",
            "factor": 4.0,
            **ORIGINAL,
            "short_factor": SPREAD,
            "long_factor": SPREAD,
        },
        {
            "rope_type": "longrope",
            **ORIGINAL,
            "attention_factor": 1.0,
            "short_factor": SPREAD,
            "long_factor": SPREAD,
        },
        {"rope_type": "dynamic", "factor": 3.0},
        {"rope_type": "linear", "factor": 4.0},
    ],
    ids=lambda rope: "-".join(rope)[:60],
)
def test_we_read_the_same_frequencies_as_transformers(rope, caplog):
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    length = WINDOW if rope["rope_type"] == "dynamic" else LENGTH
    data = dataclasses.asdict(TINY) | {
        "rope_parameters": {"rope_theta": 5000.0, **rope},
        "model_type": "llama",
    }
    data |= {"max_position_embeddings": length, "rope_theta": 5000.0}
    config, scaling = hf.parse_config(data)
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**json.loads(json.dumps(data))))
    ours = scaling.rope(config.rope_base(), WINDOW)
    np.testing.assert_allclose(theirs.inv_freq.numpy(), ours.inv_freq, rtol=1e-6)
    assert theirs.attention_scaling == pytest.approx(ours.attention_factor, rel=1e-7)
    assert config.max_position_embeddings == WINDOW
    assert config.rope_theta == 5000.0


def test_linear_without_an_original_window_warns_of_the_assumed_one(caplog):
    data = {"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}}
    with caplog.at_level(logging.WARNING, "ctxext"):
        assert rope_from_config(data) == (10000.0, 4096, Linear(4.0))
    assert "so the original one is 4096" in caplog.text
    caplog.clear()
    data["original_max_position_embeddings"] = 16384
    assert rope_from_config(data) == (10000.0, 16384, Linear(4.0))
    assert not caplog.text


def test_golden_yarn_config_of_a_published_llama2():
    spec = {
        "factor": 2.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
        "finetuned": True,
    }
    theta, window, scaling = rope_from_config(
        {"max_position_embeddings": 8192, "rope_scaling": spec}
    )
    config = dataclasses.replace(LLAMA2, rope_theta=theta, max_position_embeddings=window)
    rope = scaling.rope(config.rope_base(), 8192)
    np.testing.assert_allclose(
        rope.inv_freq[[20, 30, 40]], [5.62341288e-2, 1.07707502e-2, 1.94601715e-3], rtol=1e-6
    )
    assert rope.attention_factor == pytest.approx(0.1 * math.log(2) + 1)


YARN = {"rope_type": "yarn", "factor": 2.0}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LONG = {"rope_type": "longrope", "factor": 2.0, **ORIGINAL}


@pytest.mark.parametrize(
    "data, message",
    [
        ({"rope_scaling": YARN}, "needs original_max_position_embeddings.* silently assume 128"),
        ({"rope_scaling": {"factor": 2.0}}, "a factor but no rope_type"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "'default' has no factor"),
        (
            {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}},
            "'ntk' is not supported; known: default, linear",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
            "both type 'yarn' and",
        ),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            "contradict each other in factor",
        ),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default"}},
            "contradict each other in factor, rope_type",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            "rope_theta is given",
        ),
        (
            {"rope_scaling": {**YARN, **ORIGINAL}, "original_max_position_embeddings": 32},
            "original_max_position_embeddings is given twice",
        ),
        (
            {"rope_scaling": {**YARN, **ORIGINAL, "attn_factor": 1.2}},
            "attn_factor 1.2 multiplies .* write attention_factor 1.28318",
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, **ORIGINAL}},
            "grows from max_position_embeddings",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor must be a number"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
            "not a multiple of the linear factor",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 0.5}},
            "factor must be .*at least 1, got 0.5",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, **ORIGINAL}},
            "low_freq_factor is missing",
        ),
        (
            {"rope_scaling": {**LONG, "short_factor": [1.0] * 8, "long_factor": [0] * 8}},
            "long_factor must be positive",
        ),
        (
            {"rope_scaling": {**LONG, "short_factor": [1.0] * 8, "long_factor": [1.0] * 7}},
            "long_factor: 7 divisors do",
        ),
        (
            {"rope_scaling": {**LONG, "short_factor": [1.0] * 8}},
            "needs the lists short_factor and long_factor",
        ),
        (
            {"rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
            "'longrope' needs original_max_position_embeddings",
        ),
        (
            {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 2}},
            "must be in 0 .. 1",
        ),
        (
            {"rope_scaling": LINEAR, "partial_rotary_factor": 0.5},
            "partial_rotary_factor other than 1",
        ),
        (
            {"rope_scaling": {**LONG, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}},
            "4 divisors do not fit",
        ),
        (
            {
                "rope_scaling": {
                    **LONG,
                    "short_factor": [1.0] * 8,
                    "long_factor": [1.0] * 8,
                    "attention_factor": 1.1,
                    "long_mscale": 1.2,
                }
            },
            "readers would disagree",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"max_position_embeddings": 128.0}, "max_position_embeddings must be an integer"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": "big"}},
            "rope_theta must be a number",
        ),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x[:40],
)
def test_unknown_or_contradictory_keys_are_refused(data, message, tmp_path):
    fields = dataclasses.asdict(TINY) | {"model_type": "llama", "max_position_embeddings": 128}
    del fields["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(fields | data))
    with pytest.raises(ValueError, match=message) as error:
        hf.read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_keys_that_the_rope_command_prints():
    assert rope_to_config(Linear(float(FACTOR)), TINY, LENGTH) == {
        "max_position_embeddings": 256,
        **ORIGINAL,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    }


SHAPE = {
    "vocab_size": 420,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
}
LISTS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
KEYS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.1},
    "yarn, mscale": {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {"factor": 4.0, "attention_factor": 1.2, **LISTS},
    "longrope, its own factor": {"factor": 4.0, **LISTS},
    "proportional": {"factor": 4.0, "partial_rotary_factor": 0.5},
}
BAD_NUMBERS = (
    *(math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1e-320, 1e-12, 1e299, -1e-300),
    *(10**400, 1, 2, True, "4", [], {}),
)


@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", KEYS)
def test_any_number_gives_finite_frequencies_or_one_error(name, form, caplog):
    """Each key of each type, theta, the epsilon and the windows, with each number in its place."""
    rope_type = name.partition(",")[0]
    spec = {"rope_type": rope_type, "original_max_position_embeddings": 64, **KEYS[name]}
    if rope_type in ("default", "dynamic"):
        del spec["original_max_position_embeddings"]
    good = SHAPE | {form: spec, "rope_theta": 10000.0}
    files = [good]
    for bad in BAD_NUMBERS:
        files += [
            good | {key: bad} for key in ("rope_theta", "rms_norm_eps", "max_position_embeddings")
        ]
        files += [good | {form: spec | {key: bad}} for key in spec if key != "rope_type"]
        for key in spec.keys() & LISTS.keys():
            files.append(good | {form: spec | {key: [1.0, 1.0, bad, 1.0]}})
    num_read = 0
    for data in files:
        try:
            config, scaling = read_config(data)
            lengths = (1, config.max_position_embeddings, 300, 10**6)
            ropes = [scaling.rope(config.rope_base(), length) for length in lengths]
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        num_read += 1
        assert 1e-30 <= config.rms_norm_eps < 1
        for rope in ropes:
            assert (np.isfinite(rope.inv_freq) & (rope.inv_freq >= 0)).all(), data
            assert 0 < rope.attention_factor < math.inf, data
    assert num_read > 0, "the file without a bad number"
