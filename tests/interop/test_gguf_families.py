"""GGUF files of every family that llama.cpp runs, next to its package, the plain readers and
transformers."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from ctxext.export import export
from ctxext.interop import gguf, gguf_reader
from ctxext.interop.family_tensors import to_stored
from ctxext.interop.gguf_names import architecture_of, tensor_name, to_gguf
from ctxext.interop.hf_weights import WriteOptions, lazy_tensors
from ctxext.interop.pth import open_archive
from ctxext.methods import NTK, Linear, Llama3, Yarn
from ctxext.model.config import LlamaConfig
from ctxext.model.lm import LM
from ctxext.prove import gguf_parameters, prove
from ctxext.prove.gguf_keys import compare_keys
from ctxext.prove.reference.gguf import GGUFReference
from ctxext.prove.reference.gguf_file import GGUFFile
from ctxext.prove.reference.hf import HFReference
from ctxext.rope import RopeScaling, Unscaled
from support import families
from support.hf_files import stored_model, write_hf
from support.llamas import LENGTH, random_params, tokenizer

library = pytest.importorskip("gguf", reason="needs the extra gguf")
from support.gguf_files import KIND, keys_of, rewrite  # noqa: E402

ARCHITECTURES = {
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "falcon-7b": "falcon",
    "falcon-11b": "falcon",
    "falcon-40b": "falcon",
    "mpt-h4-clip": "mpt",
    "mpt-h6": "mpt",
}
"""Golden models, in the form that llama.cpp runs -> its architecture."""
CHANGES = {"mistral": {"sliding_window": None}, "smollm3": {"no_rope_layers": None}}
GOLDEN = {"mistral": "mistral-sw4"}
ROTARY = [name for name in ARCHITECTURES if not name.startswith("mpt")]
PLAIN = Unscaled()


@functools.cache
def config_of(name: str) -> LlamaConfig:
    return families.parts_config(GOLDEN.get(name, name), **CHANGES.get(name, {}))


@functools.cache
def params_of(name: str):
    return random_params(config_of(name))


def save(path: Path, name: str, scaling: RopeScaling = PLAIN) -> Path:
    config = config_of(name)
    seq_len = config.max_position_embeddings if scaling == PLAIN else LENGTH
    model = stored_model(config, params_of(name), scaling, tokenizer(), seq_len=seq_len)
    gguf.write(path, model, WriteOptions("float32"))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The GGUF file of a golden model, by its name."""
    folder = tmp_path_factory.mktemp("gguf")

    def make(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else save(path, name)

    return make


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_import_gives_the_model_back(name, file):
    stored = gguf_reader.read(file(name))
    config = config_of(name)
    # What GGUF has no keys for; an architecture that several families share is read as a Llama.
    same = ("family", "initializer_range", "bos_token_id", "eos_token_id")
    expected = dataclasses.replace(config, **{key: getattr(stored.config, key) for key in same})
    assert stored.config == expected
    assert stored.config.family == ("llama" if name == "mistral" else config.family)
    for tensor_name_, tensor in lazy_tensors(config, params_of(name)).items():
        actual = stored.tensors[tensor_name_]
        np.testing.assert_array_equal(actual.read(), tensor.read(), tensor_name_)
        part = (slice(3, 7), slice(2, 9))[: len(tensor.shape)]
        np.testing.assert_array_equal(actual.read(part), tensor.read()[part], tensor_name_)
    assert stored.tensors.keys() == lazy_tensors(config, params_of(name)).keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_are_those_that_the_package_gives_them(name, file):
    """Its table knows the names of every family's own files."""
    config = config_of(name)
    architecture = {value: key for key, value in library.MODEL_ARCH_NAMES.items()}
    table = library.get_tensor_name_map(architecture[ARCHITECTURES[name]], config.num_hidden_layers)
    of_the_family = to_stored(lazy_tensors(config, params_of(name)), config)
    expected = {table.get_name(key, (".weight", ".bias")) for key in of_the_family}
    reader = library.GGUFReader(file(name))
    assert {tensor.name for tensor in reader.tensors} == expected
    keys = keys_of(file(name))
    assert keys["general.architecture"] == ARCHITECTURES[name]
    constants = set()
    for group in ("LLM", "Attention", "Rope"):
        constants |= set(vars(getattr(library.constants.Keys, group)).values())
    own = {key for key in keys if key.startswith(f"{ARCHITECTURES[name]}.")}
    assert len(own) >= 10
    assert own <= {
        str(key).replace("{arch}", ARCHITECTURES[name]) for key in constants if isinstance(key, str)
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_plain_readers_compute_the_same(name, file, tmp_path):
    """That of Hugging Face's files is compared with transformers' golden logits elsewhere."""
    config = config_of(name)
    write_hf(tmp_path / "m", config, params_of(name), PLAIN, tokenizer(), dtype="float32")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 24)
    index = np.arange(24)
    from_hf = HFReference(tmp_path / "m", open_archive=open_archive)
    from_gguf = GGUFReference(file(name))
    expected = from_hf.logits(tokens, index, index)
    np.testing.assert_allclose(from_gguf.logits(tokens, index, index), expected, atol=1e-6)
    assert expected.std() > 0.1
    lm = LM(config, params_of(name), tokenizer())
    assert compare_keys(GGUFFile(file(name)), lm, [64]) == ([], [])
    opened = gguf_parameters.open_like(file(name), dataclasses.replace(lm, params={}))
    assert jax.tree.all(jax.tree.map(np.array_equal, opened.params, lm.params))


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("scaling", [Linear(4.0), Yarn(4.0), NTK(4.0)], ids=str)
def test_scalings_that_every_architecture_reads(name, scaling, tmp_path):
    path = save(tmp_path / "m.gguf", name, scaling)
    config = config_of(name)
    stored = gguf_reader.read(path)
    assert stored.window == LENGTH
    expected = scaling.rope(config.rope_base(), LENGTH)
    by_reader, attention_factor = GGUFReference(path).rope(LENGTH)
    actual = stored.scaling.rope(stored.config.rope_base(), LENGTH)
    np.testing.assert_allclose(by_reader, expected.inv_freq, rtol=1e-6)
    np.testing.assert_allclose(actual.inv_freq, expected.inv_freq, rtol=1e-6)
    for factor in (attention_factor, actual.attention_factor):
        assert factor == pytest.approx(expected.attention_factor, rel=1e-6)


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("scaling", [Llama3(4.0), Yarn(4.0, beta_fast=16.0)], ids=str)
def test_divisors_are_written_only_where_llama_cpp_loads_them(name, scaling, tmp_path):
    """A file with a tensor that its architecture does not have is one that llama.cpp refuses."""
    config = config_of(name)
    architecture = {value: key for key, value in library.MODEL_ARCH_NAMES.items()}
    if name == "mistral":
        save(tmp_path / "m.gguf", name, scaling)
        assert "rope_freqs.weight" in GGUFFile(tmp_path / "m.gguf").tensors
        return
    message = f"architecture {ARCHITECTURES[name]} reads no divisors of frequencies, which "
    with pytest.raises(ValueError, match=message + type(scaling).__name__):
        gguf.check(config, scaling, window=LENGTH, dtype="float32")
    assert (
        architecture_of(config).name == library.MODEL_ARCH_NAMES[architecture[ARCHITECTURES[name]]]
    )
    divisors = {"rope_freqs.weight": (np.ones(config.head_dim // 2, np.float32), KIND.F32)}
    path = rewrite(save(tmp_path / "m.gguf", name), tmp_path / "n.gguf", {}, divisors)
    with pytest.raises(ValueError, match="n.gguf: rope_freqs.weight is not read by llama.cpp's"):
        gguf_reader.read(path)
    with pytest.raises(ValueError, match="is no tensor of architecture"):
        GGUFReference(path)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("mistral-sw4", {}, "architecture llama has no sliding window: beyond 4 tokens"),
        ("qwen2-sw", {}, "architecture qwen2 has no sliding window: beyond 4 tokens"),
        (
            "mistral-sw4",
            {"layer_types": ["sliding_attention", "full_attention"]},
            "set max_position_embeddings in config.json to 4",
        ),
        ("smollm3", {}, "rotates all layers but every fourth .no_rope_layer_interval 4., unlike"),
        ("qwen3", {"attention_bias": True}, "biases are not written to GGUF"),
        ("falcon-7b", {"bias": True}, "biases are not written to GGUF"),
        ("falcon-7b", {"parallel_attn": False}, "runs attention and MLP in parallel"),
        ("falcon-7b", {"activation": "gelu_new"}, "llama.cpp computes gelu, not gelu_new"),
        ("qwen2", {"head_dim": 32}, "llama.cpp's architecture qwen2 has heads of .*, not of 32"),
    ],
)
def test_what_llama_cpp_would_run_as_another_model_is_refused_by_name(name, changes, message):
    config = families.parts_config(name, **changes)
    with pytest.raises(ValueError, match=message):
        gguf.check(config, PLAIN, window=64, dtype="float32")


def test_a_window_that_hides_nothing_is_no_obstacle(tmp_path):
    """The way that the refusal names."""
    config = families.parts_config("mistral-sw4", sliding_window=64)
    assert config.parts.sliding_window == config.max_position_embeddings == 64
    gguf.check(config, PLAIN, window=64, dtype="float32")
    with pytest.raises(ValueError, match="beyond 64 tokens .* in a context of 256"):
        gguf.check(config, Yarn(4.0), window=256, dtype="float32")


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("mpt-h6", {"mpt.attention.max_alibi_bias": 0.0}, "max_alibi_bias 0.0 is not supported"),
        ("mpt-h6", {"mpt.attention.max_alibi_bias": None}, "max_alibi_bias 0.0 is not supported"),
        ("mpt-h6", {"mpt.attention.clamp_kqv": "6"}, "mpt.attention.clamp_kqv must be a number"),
        ("mpt-h6", {"mpt.attention.head_count_kv": 3}, "head_count_kv must be mpt.attention.head"),
        ("mpt-h6", {"mpt.feed_forward_length": 97}, "must be a multiple of mpt.embedding_length"),
        ("qwen2", {"qwen2.attention.clamp_kqv": 6.0}, "qwen2.attention.clamp_kqv 6.0 is not supp"),
        ("qwen3", {"qwen3.attention.sliding_window": 8}, "sliding_window 8 is not supported"),
        (
            "falcon-40b",
            {"falcon.attention.layer_norm_epsilon": None},
            "the key falcon.attention.layer_norm_epsilon is missing",
        ),
        ("falcon-40b", {"falcon.attention.head_count_kv": 1}, "blk.0.attn_qkv.weight has shape"),
    ],
)
def test_keys_that_are_not_understood_are_refused_by_name(name, changes, message, file, tmp_path):
    path = rewrite(file(name), tmp_path / "m.gguf", changes)
    with pytest.raises(ValueError, match=message) as error:
        gguf_reader.read(path)
    assert str(path) in str(error.value)


def test_a_norm_that_is_left_out_is_named(file, tmp_path):
    path = rewrite(file("qwen3"), tmp_path / "m.gguf", {}, {"blk.1.attn_q_norm.weight": None})
    with pytest.raises(ValueError, match="it lacks blk.1.attn_q_norm.weight"):
        gguf_reader.read(path)


def test_a_name_does_not_change_the_tokenizer(tmp_path):
    """llama.cpp takes other tokenizers for models called phi-3 or modern-bert."""
    for stem, name in (
        ("my-Phi-3-mini", "my-Phi 3-mini"),
        ("PHI3", "PHI 3"),
        ("modern-bert", "modern bert"),
        ("phi-2", "phi-2"),
    ):
        path = save(tmp_path / f"{stem}.gguf", "qwen3")
        assert keys_of(path)["general.name"] == name


def test_fused_rows_are_all_queries_then_keys_then_values():
    """Hugging Face's Falcon has them by key-value head."""
    config = config_of("falcon-40b")
    tensors = lazy_tensors(config, params_of("falcon-40b"))
    whole = to_gguf(tensors, config)["blk.1.attn_qkv.weight"].read()
    parts = [tensors[f"model.layers.1.self_attn.{part}_proj.weight"].read() for part in "qkv"]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert tensor_name("model.layers.1.input_layernorm.bias", config) == "blk.1.attn_norm_2.bias"


@pytest.mark.check
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_is_proven(name, tmp_path):
    config = config_of(name)
    scaling = Yarn(2.0) if config.layers.rotates else PLAIN
    lm = LM(config, params_of(name), tokenizer(), scaling=scaling)
    path = export(lm, tmp_path / "m.gguf", to="gguf", dtype="float32")
    proof = prove(path, against=lm)
    assert proof["equal"]
    assert proof["readers"][0]["equal"]
    assert proof["settings_not_known"] == []
    effects = [known["effect"] for known in proof["known_incompatibilities"]]
    has_gelu = config.hidden_act == "gelu"
    assert any("gelu by its approximation" in effect for effect in effects) == has_gelu


@pytest.mark.check
@pytest.mark.parametrize("name", ["mistral", "qwen2", "qwen3", "falcon-7b"])
@pytest.mark.usefixtures("readers")
def test_transformers_reads_the_same_model(name, tmp_path):
    """It reads these of the architectures; a Falcon with several key-value heads it misreads."""
    import torch
    import transformers

    config = config_of(name)
    save(tmp_path / "m.gguf", name)
    # Of a Qwen3 it takes head_dim to be 128, whatever the file says.
    options = {"head_dim": config.head_dim} if name == "qwen3" else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, **options
    ).eval()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 24))
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(tokens)).logits[0].numpy()
    ours = GGUFReference(tmp_path / "m.gguf").logits(tokens[0], np.arange(24), np.arange(24))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_llama_cpp_agrees(name, factor, tmp_path):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, built from source")
    config = config_of(name)
    if factor != 1 and not config.layers.rotates:
        pytest.skip("ALiBi has no scaling")
    scaling = PLAIN if factor == 1 else Yarn(factor)
    lm = LM(config, params_of(name), tokenizer(), scaling=scaling)
    path = export(lm, tmp_path / "m.gguf", to="gguf", dtype="float32")
    proof = prove(path, against=lm)
    assert proof["equal"]
    assert proof["readers_not_run"] == {}
    theirs = next(reader for reader in proof["readers"] if reader["reader"] == "llama.cpp")
    assert theirs["token_ids_equal"]
    assert max(theirs["logits"]) < (0.005 if config.hidden_act == "gelu" else 1e-5)
