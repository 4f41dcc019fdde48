"""Families of models: their files, next to transformers' logits and the plain reader."""

import dataclasses
import json

import numpy as np
import pytest

from ctxext.export import config_with, export
from ctxext.interop import hf, meta
from ctxext.interop.family_tensors import from_stored, to_stored
from ctxext.interop.hf_weights import lazy_tensors
from ctxext.interop.pth import open_archive
from ctxext.loading import load
from ctxext.methods.lm_infinite import LMInfinite
from ctxext.methods.query_temperature import Ministral3Temperature
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.lm import LM
from ctxext.model.parts import Parts
from ctxext.model.trainable import LoRA
from ctxext.prove import prove
from ctxext.prove.reference.hf import HFReference
from ctxext.rope import Unscaled
from support import families, tiny
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer

GOLDEN = 2e-5
"""The tolerance of the golden logits, which are printed with seven digits."""
ONE_EACH = ("mistral-sw4", "qwen2-sw", "qwen3", "smollm3", "falcon-40b", "falcon-7b", "mpt-h6")
"""A golden model of every family, those with the more particular parts; gradients of the others
are for `make slow`."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The files of a golden model, by its name."""
    made = {}

    def make(name: str):
        if name not in made:
            path = tmp_path_factory.mktemp(name)
            made[name] = families.write_golden(path, families.cases()[name])
        return made[name]

    return make


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_EACH else pytest.mark.check)
        for name in families.cases()
    ],
)
def test_logits_of_every_family_are_those_of_transformers(name, directory):
    case = families.cases()[name]
    lm = families.open_model(directory(name), kernel="dense")
    logits = lm.logits(np.array([case["tokens"]]))[0]
    np.testing.assert_allclose(logits, case["logits"], atol=GOLDEN)


@pytest.mark.parametrize("name", families.cases())
def test_the_plain_reader_knows_every_family(name, directory):
    case = families.cases()[name]
    tokens = np.array(case["tokens"])
    index = np.arange(len(tokens))
    reader = HFReference(directory(name), open_archive=open_archive)
    logits = reader.logits(tokens, index, index)
    np.testing.assert_allclose(logits, case["logits"], atol=GOLDEN)


@pytest.mark.parametrize("name", families.cases())
def test_a_written_config_json_says_the_same(name):
    config, scaling = hf.parse_config(families.cases()[name]["params"])
    written = hf.config_json(config, scaling, seq_len=64, dtype="float32")
    assert hf.parse_config(json.loads(json.dumps(written))) == (config, scaling)
    assert written["model_type"] == families.cases()[name]["params"]["model_type"]


def test_alternating_windows_are_a_ministral():
    data = families.cases()["mistral-sw4"]["params"]
    data = data | {"layer_types": ["sliding_attention", "full_attention"]}
    config, scaling = hf.parse_config(data)
    assert config.parts == Parts(sliding_window=4, windowed=(True, False))
    written = hf.config_json(config, scaling, seq_len=64, dtype="float32")
    assert written["model_type"] == "ministral"  # as transformers 5 reads such a file
    assert written["layer_types"] == data["layer_types"]
    assert hf.parse_config(written) == (config, scaling)


PUBLISHED_MINISTRAL3 = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 16.0,
    "llama_4_scaling_beta": 0.1,
    "max_position_embeddings": 262144,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16384,
    "rope_theta": 1000000.0,
    "rope_type": "yarn",
    "type": "yarn",
}
"""`rope_parameters` as transformers 5.23.0 writes those of a Ministral 3 (golden data)."""


def ministral3(**changes):
    keys = PUBLISHED_MINISTRAL3 | changes
    data = families.cases()["ministral3"]["params"] | {"max_position_embeddings": 262144}
    return data | {"rope_parameters": {k: value for k, value in keys.items() if value is not None}}


def test_a_published_ministral_3_is_read():
    config, scaling = hf.parse_config(ministral3())
    assert config.max_position_embeddings == 16384
    assert scaling == Yarn(16.0, attention_factor=1.0)
    scale = config.layers.query_scale
    assert scale is not None
    positions = np.array([0, 16383, 16384, 262143])
    np.testing.assert_allclose(scale(positions), 1 + 0.1 * np.log([1, 1, 2, 16]), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama_4_scaling_beta": None}, "rope_parameters needs llama_4_scaling_beta and"),
        ({"original_max_position_embeddings": None}, "rope_parameters needs llama_4_scaling_beta"),
        ({"llama_4_scaling_beta": "0.1"}, "llama_4_scaling_beta must be a finite number"),
        ({"llama_4_scaling_beta": -1.0}, "temperature_beta must be a finite number from 0 on"),
        ({"max_position_embeddings": 5}, "has max_position_embeddings 5, another than"),
    ],
)
def test_a_ministral_3_without_its_temperature_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        hf.parse_config(ministral3(**changes))


def test_the_temperature_of_ministral_3_on_a_llama_is_exported_as_one(tmp_path):
    """Its logits are those of the plain reader of the files."""
    lm = LM(TINY, random_params(TINY), tokenizer()).with_method(
        Ministral3Temperature(TINY.max_position_embeddings, beta=2.0)
    )
    tokens = np.arange(2 * TINY.max_position_embeddings + 9) % TINY.vocab_size
    out = export(lm, tmp_path / "m", dtype="float32")
    config, scaling = hf.read_config(out)
    assert (config.family, config.parts.temperature_beta) == ("ministral3", 2.0)
    assert scaling == Unscaled()
    index = np.arange(len(tokens))
    read = HFReference(out, open_archive=open_archive).logits(tokens, index, index[-5:])
    np.testing.assert_allclose(lm.logits(tokens[None])[0, -5:], read, atol=2e-4)


@pytest.mark.parametrize(
    ("config", "attention", "message"),
    [
        (TINY, Ministral3Temperature(7), "one field for L .*: 7 is not"),
        (
            dataclasses.replace(TINY, attention_bias=True),
            Ministral3Temperature(TINY.max_position_embeddings),
            "is a Llama without biases, and cannot represent this llama",
        ),
        (
            TINY,
            Ministral3Temperature(TINY.max_position_embeddings, inner=SelfExtend(4, 8)),
            "Ministral3Temperature is a way to run a model, for which the hf format has no field",
        ),
    ],
)
def test_a_temperature_that_no_family_has_is_refused(config, attention, message):
    with pytest.raises(ValueError, match=message):
        config_with(attention, config, to="hf")
    with pytest.raises(ValueError, match="gguf format has no field"):
        config_with(attention, config, to="gguf")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("qwen3", marks=pytest.mark.check),
        pytest.param("ministral3", marks=pytest.mark.check),
        # The whole way of every family, in tests/end_to_end, ends with the same proof.
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mpt-h6", "falcon-40b", "smollm3", "mistral-sw4")
        ),
    ],
)
@pytest.mark.usefixtures("readers")
def test_an_export_is_proven_by_the_plain_reader_and_by_transformers(name, tmp_path):
    config = families.parts_config(name)
    scaling = Yarn(2.0) if config.layers.rotates else Unscaled()
    lm = LM(config, random_params(config), tokenizer(), scaling=scaling)
    proof = prove(export(lm, tmp_path / "m", dtype="float32"), against=lm)
    assert {reader["reader"]: reader["equal"] for reader in proof["readers"]} == {
        "numpy": True,
        "transformers": True,
    }
    assert proof["equal"]


@pytest.mark.check
@pytest.mark.usefixtures("readers")
def test_a_qwen2_without_qwens_tokenizer_is_proven_by_the_class_that_reads_its_file(tmp_path):
    """AutoTokenizer cuts its text by Qwen's rules, whatever tokenizer.json says."""
    import transformers

    config = families.parts_config("qwen2")
    lm = LM(config, random_params(config), tokenizer())
    out = export(lm, tmp_path / "m", dtype="float32")
    text = "def main():\n    return 2024"
    given = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
    assert given(text).input_ids != lm.tokenizer.encode_as_readers(text)
    proof = prove(out, against=lm)
    assert proof["equal"]
    (reader,) = (each for each in proof["readers"] if each["reader"] == "transformers")
    assert reader["token_ids_equal"] and reader["vocabulary_equal"]
    (known,) = (
        known["effect"]
        for known in proof["known_incompatibilities"]
        if known["reader"] == "transformers 5"
    )
    assert "cuts the text of every qwen2 by Qwen's rules" in known


@pytest.mark.check
@pytest.mark.usefixtures("readers")
def test_other_slopes_than_transformers_knows_are_proven_without_it(tmp_path):
    """Its MPT has the slopes of alibi_bias_max 8 whatever config.json says (golden data)."""
    config = families.parts_config("mpt-h4")
    config = dataclasses.replace(
        config, parts=dataclasses.replace(config.parts, alibi_exponent=16.0)
    )
    lm = LM(config, random_params(config), tokenizer())
    proof = prove(export(lm, tmp_path / "m", dtype="float32"), against=lm)
    assert proof["equal"]
    reason = "it takes alibi_bias_max to be 8, but the model has 16"
    assert proof["readers_not_run"] == {"transformers": reason}
    assert any("alibi_bias_max" in each["effect"] for each in proof["known_incompatibilities"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.check if name in ONE_EACH else pytest.mark.slow)
        for name in families.cases()
    ],
)
@pytest.mark.usefixtures("readers")
def test_logits_and_gradients_are_those_of_transformers(name, tmp_path):
    import torch

    config = families.parts_config(name)
    params = random_params(config)
    write_hf(tmp_path / "m", config, params, Unscaled(), tokenizer(), dtype="float32")
    model = families.torch_model(tmp_path / "m")
    tokens = tiny.tokens(2, 24, vocab=config.vocab_size)
    inputs = torch.from_numpy(tokens).long()
    theirs = model(input_ids=inputs, labels=inputs, use_cache=False)
    theirs.loss.backward()
    lm = LM(config, params, tokenizer())
    np.testing.assert_allclose(lm.logits(tokens), theirs.logits.detach().numpy(), atol=1e-4)
    gradients = families.gradients(config, params, tokens)
    stored = families.stored_tensors(config, gradients)
    for tensor_name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            stored[tensor_name], parameter.grad.numpy(), atol=1e-5, err_msg=tensor_name
        )


@pytest.mark.parametrize("name", ["qwen2-sw", "smollm3", "mpt-h6"])
def test_text_written_with_a_cache_is_that_of_the_whole_text(name, directory):
    lm = families.open_model(directory(name))
    prompt = tiny.tokens(1, 12, vocab=16)
    new = lm.generate(prompt, max_new_tokens=6)
    text = np.concatenate([prompt, new], 1)
    np.testing.assert_array_equal(lm.logits(text)[0, 11:-1].argmax(-1), new[0])


INDEX = np.arange(20)
I, J = INDEX[:, None], INDEX[None, :]
GROUPED = np.where(I - J < 8, I - J, I // 2 - J // 2 + 4)
CAPPED = np.where((I - J < 8) | (J < 2), np.minimum(I - J, 8), np.nan)


@pytest.mark.parametrize(
    ("method", "distance"),
    [(SelfExtend(2, 8), GROUPED), (LMInfinite(8, 2), CAPPED)],
    ids=["SelfExtend", "LMInfinite"],
)
def test_alibi_biases_by_the_distances_of_an_attention_method(method, distance, directory):
    path = directory("mpt-h6")
    tokens = tiny.tokens(1, 20, vocab=16)
    reader = families.ByDistance(path, open_archive=open_archive)
    reader.distance = np.where(I < J, np.nan, distance)
    lm = families.open_model(path, kernel="dense").with_method(method)
    expected = reader.logits(tokens[0], INDEX, INDEX)
    np.testing.assert_allclose(lm.logits(tokens)[0], expected, atol=GOLDEN)


@pytest.mark.parametrize("name", ["falcon-40b", "falcon-7b", "mpt-h6"])
def test_a_slice_of_a_projection_comes_out_of_the_fused_matrix(name):
    config = families.parts_config(name)
    tensors = lazy_tensors(config, random_params(config))
    stored = to_stored(tensors, config)
    assert len(stored) == len(tensors) - 2 * config.num_hidden_layers
    again = from_stored(stored, list(tensors), config)
    part = (slice(3, 7), slice(2, 9))
    for tensor_name, tensor in tensors.items():
        assert again[tensor_name].shape == tensor.shape
        np.testing.assert_array_equal(again[tensor_name].read(), tensor.read())
        if "self_attn.o_proj" not in tensor_name and "self_attn" in tensor_name:
            np.testing.assert_array_equal(again[tensor_name].read(part), tensor.read()[part])
        alone = from_stored(stored, [tensor_name], config)
        np.testing.assert_array_equal(alone[tensor_name].read(), tensor.read())


REFUSALS = {
    "falcon-7b": [
        ({"alibi": True}, "alibi true .Falcon RW. is not supported"),
        ({"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn false"),
        ({"hidden_dropout": 0.1}, "hidden_dropout other than 0"),
        ({"apply_residual_connection_post_layernorm": True}, "post_layernorm true is not"),
        ({"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn must be 1 or 2"),
        ({"hidden_size": None}, "hidden_size missing"),
    ],
    "mpt-h4": [
        ({"attn_config": {"alibi": False}}, "attn_config.alibi false"),
        ({"attn_config": {"qk_ln": True}}, "attn_config.qk_ln is not supported"),
        ({"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm"),
        ({"attn_config": {"attn_type": "grouped_query_attention"}}, "attn_type 'grouped"),
        ({"attn_config": {"softmax_scale": 0.5}}, "softmax_scale 0.5"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale 'inv_sqrt_d_model'"),
        ({"no_bias": False}, "no_bias false"),
        ({"norm_type": "rmsnorm"}, "norm_type 'rmsnorm'"),
        ({"n_layers": None}, "n_layers missing"),
    ],
    "mistral-sw4": [
        ({"attention_bias": True}, "attention_bias is no key of model_type mistral"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has 1 names"),
        ({"layer_types": ["chunked_attention"] * 2}, "layer_types has chunked_attention"),
    ],
    "qwen2": [
        ({"layer_types": ["sliding_attention"] * 2}, "no sliding_window is given"),
        ({"max_window_layers": "all"}, "max_window_layers must be a whole number"),
        ({"num_key_value_heads": ...}, "num_key_value_heads missing"),
    ],
    "smollm3": [
        ({"no_rope_layers": [1]}, "no_rope_layers must have a 0 or a 1 for each of 4 layers"),
        ({"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval must be"),
    ],
}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [(name, *case) for name, cases in REFUSALS.items() for case in cases],
)
def test_what_a_family_does_not_compute_is_refused_by_its_key(name, changes, message):
    data = {**families.cases()[name]["params"], **changes}
    data = {key: value for key, value in data.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        hf.parse_config(data)


def test_the_form_of_mistral_s_own_code_is_refused_by_name(tmp_path):
    (tmp_path / "params.json").write_text('{"dim": 64, "head_dim": 16, "hidden_dim": 96}')
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="the form of Mistral's own code, which is not read; use"):
        load(tmp_path)


@pytest.mark.parametrize("name", [name for name in ONE_EACH if name != "llama"])
def test_metas_format_refuses_every_other_family_by_name(name):
    config = families.parts_config(name)
    message = f"holds Llamas, not model_type {config.family}; export with --to hf"
    with pytest.raises(ValueError, match=message):
        meta.check(config, Unscaled(), window=64, dtype="float32")


def test_methods_and_formats_without_a_family_are_refused(directory):
    lm = families.open_model(directory("mpt-h4"))
    with pytest.raises(ValueError, match="Yarn scales rotary embeddings, but mpt has ALiBi"):
        lm.with_method(Yarn(2.0))
    with pytest.raises(ValueError, match="Meta's format holds Llamas, not model_type mpt"):
        meta.check(lm.config, Unscaled(), window=64, dtype="float32")
    with pytest.raises(ValueError, match="the MLP of mpt has no gate_proj"):
        LoRA(targets=("gate_proj",)).pattern(lm.config)
    wrong = dataclasses.replace(lm.config, parts=Parts(qk_norm=True), family="mistral")
    with pytest.raises(ValueError, match="model_type mistral cannot represent parts"):
        hf.config_json(wrong, Unscaled(), seq_len=64, dtype="float32")
    nobody = dataclasses.replace(lm.config, family="nobody")
    with pytest.raises(
        ValueError, match="family 'nobody' is not known; known: llama, falcon, ministral3"
    ):
        hf.config_json(nobody, Unscaled(), seq_len=64, dtype="float32")
