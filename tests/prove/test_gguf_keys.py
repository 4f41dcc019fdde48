"""Each key of a GGUF file that llama.cpp obeys is compared with the model, one by one.

The files are read and written again by the package gguf, which knows nothing of ctxext.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctxext.export import export
from ctxext.methods import Linear, Yarn
from ctxext.model.lm import LM
from ctxext.prove import describe, prove
from ctxext.prove.gguf_keys import (
    ABOUT,
    NAMED_AS_INCOMPATIBLE,
    NEUTRAL,
    NEUTRAL_OF_TOKENIZERS,
    READ_AS_FREQUENCIES,
    TOKENIZER_KEYS,
    WITHOUT_EFFECT,
    WITHOUT_EFFECT_IN_GENERAL,
    compare_keys,
    keys_not_read,
)
from ctxext.prove.reference.gguf import GGUFReference
from ctxext.prove.reference.gguf_file import GGUFFile
from ctxext.tokenization.tokenizer import Tokenizer
from interop.test_gguf_byte_level import files as byte_level_files
from support.gguf_files import rewrite
from support.llamas import LENGTH, TINY, WINDOW, random_params, tokenizer

library = pytest.importorskip("gguf", reason="needs the extra gguf")
CONFIG = dataclasses.replace(TINY, num_attention_heads=4, num_key_value_heads=2)
TEMPLATE = "{{ bos_token }}{{ messages[0].content }}"


def model(scaling=None) -> LM:
    files = tokenizer().export_files(LENGTH) | {"chat_template.jinja": TEMPLATE.encode()}
    return LM(CONFIG, random_params(CONFIG), Tokenizer(files), scaling=scaling or Yarn(4.0))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return export(model(), tmp_path_factory.mktemp("good") / "m.gguf", to="gguf", dtype="float32")


def changed(good: Path, out: Path, changes: dict[str, Any]) -> Path:
    """The file with other keys, as the package writes it; None leaves a key out.

    A `GGUFValue` is written in its own type.
    """
    reader = library.GGUFReader(good)
    writer = library.GGUFWriter(out, "llama")
    types = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    keys = {name: field.contents() for name, field in reader.fields.items()}
    for name, value in (keys | changes).items():
        if value is None or name.startswith("GGUF.") or name == "general.architecture":
            continue
        if isinstance(value, library.GGUFValue):
            writer.kv_data[0][name] = value
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, library.GGUFValueType[types[type(value)]])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def differences(path: Path) -> list[str]:
    return compare_keys(GGUFFile(path), model(), [LENGTH])[0]


def swapped(values: list[Any]) -> list[Any]:
    """A list with two neighbours far from the beginning in the other order."""
    return [*values[:-10], values[-9], values[-10], *values[-8:]]


def test_a_file_that_the_package_wrote_again_is_equal(good, tmp_path):
    same = changed(good, tmp_path / "m.gguf", {})
    assert compare_keys(GGUFFile(same), model(), [LENGTH]) == ([], [])
    proof = prove(same, against=model())
    assert proof["equal"]
    assert proof["settings_that_differ"] == proof["settings_not_known"] == []


KEYS = {
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 4,
    "llama.attention.key_length": 32,
    "llama.attention.value_length": 32,
    "llama.attention.layer_norm_rms_epsilon": 1.0001e-5,
    "llama.attention.scale": 1.0,
    "llama.attention.sliding_window": 16,
    "llama.attention.causal": False,
    "llama.block_count": 1,
    "llama.context_length": 2 * LENGTH,
    "llama.embedding_length": 128,
    "llama.expert_count": 8,
    "llama.feed_forward_length": 97,
    "llama.logit_scale": 0.5,
    "llama.rope.dimension_count": 8,
    "llama.rope.scale_linear": 2.0,
    "llama.rope.scaling.original_context_length": 2 * WINDOW,
    "llama.rope.scaling.yarn_ext_factor": 0.0,
    "llama.rope.scaling.yarn_log_multiplier": 0.1,
    "llama.vocab_size": 421,
    "general.file_type": 7,
    "tokenizer.chat_template": TEMPLATE + " ",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.add_eos_token": True,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 7,
    "tokenizer.ggml.eot_token_id": 7,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.padding_token_id": 7,
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.unknown_token_id": 7,
    "tokenizer.ggml.remove_extra_whitespaces": True,
}


def test_every_key_that_llama_cpp_obeys_is_compared(good, tmp_path):
    assert differences(good) == []
    everything = changed(good, tmp_path / "m.gguf", KEYS)
    named = {difference.split(" is ")[0] for difference in differences(everything)}
    assert named == KEYS.keys()
    file = GGUFFile(good)
    file.keys["general.alignment"] = 24  # tensors would be elsewhere in a file with that key
    assert compare_keys(file, model(), [LENGTH])[0] == ["general.alignment is 24, not 32"]
    text = "\n".join(differences(everything))
    assert "llama.attention.head_count is 8, not 4" in text
    assert "tokenizer.ggml.eos_token_id is 7, not 2" in text
    absent = changed(good, tmp_path / "n.gguf", dict.fromkeys(KEYS))
    named = {difference.split(" is ")[0] for difference in differences(absent)}
    # llama.cpp finds the others in the rest of the file, or has the same value by itself.
    assert named == {
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.attention.layer_norm_rms_epsilon",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.rope.dimension_count",
        "tokenizer.chat_template",
        "tokenizer.ggml.model",
    }


def stored_as(kind: str, value: Any, of_items: str | None = None) -> Any:
    types = library.GGUFValueType
    return library.GGUFValue(value, types[kind], of_items and types[of_items])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.name", 3),
        ("llama.rope.freq_base", 10000),
        ("llama.rope.freq_base", stored_as("FLOAT64", 10000.0)),
        ("llama.rope.scaling.factor", 4),
        ("llama.rope.scaling.finetuned", 1),
        ("llama.attention.head_count", stored_as("INT32", 4)),
        ("llama.attention.layer_norm_rms_epsilon", stored_as("FLOAT64", 1e-5)),
        ("tokenizer.ggml.bos_token_id", stored_as("INT32", 1)),
        ("tokenizer.ggml.add_bos_token", 1),
        ("tokenizer.ggml.scores", stored_as("ARRAY", [0.0] * CONFIG.vocab_size, "FLOAT64")),
        ("tokenizer.ggml.token_type", [1.0] * CONFIG.vocab_size),
    ],
)
def test_a_value_in_a_type_that_llama_cpp_does_not_load_is_refused(good, tmp_path, key, value):
    """Its `Llama(...)` fails for each of these files, though the numbers are right."""
    path = changed(good, tmp_path / "m.gguf", {key: value})
    with pytest.raises(ValueError, match=f"{key} is .* of type .* in .*m.gguf; llama.cpp reads"):
        GGUFReference(path)


def test_a_vector_that_is_not_in_float32_is_refused(good, tmp_path):
    """llama.cpp ends with "binary_op: unsupported types" for such a file."""
    kind = library.GGMLQuantizationType.F16
    path = rewrite(good, tmp_path / "m.gguf", {}, {"output_norm.weight": (np.ones(64, "f2"), kind)})
    with pytest.raises(ValueError, match="output_norm.weight in .* is a vector in float16; llama"):
        GGUFReference(path)
    part = changed(good, tmp_path / "n.gguf", {"split.count": stored_as("UINT16", 2)})
    with pytest.raises(ValueError, match="n.gguf is one of 2 parts; join them first"):
        GGUFReference(part)


def test_what_llama_cpp_takes_for_absent_keys_of_the_tokenizer(good, tmp_path):
    """Without types all tokens are normal, and without scores every pair is as good."""
    texts = ["hello world", "a  b"]
    expected = GGUFReference(good).token_ids(texts)
    absent = {"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.bos_token_id": None}
    assert GGUFReference(changed(good, tmp_path / "m.gguf", absent)).token_ids(texts) == expected
    for name in ("token_type", "scores"):
        key = f"tokenizer.ggml.{name}"
        path = changed(good, tmp_path / f"{name}.gguf", {key: None})
        assert GGUFReference(path).token_ids(texts)[0][0] == expected[0][0]
        assert any(key in difference for difference in differences(path))
    for name in ("tokens", "model"):
        path = changed(good, tmp_path / f"{name}.gguf", {f"tokenizer.ggml.{name}": None})
        with pytest.raises(ValueError, match=f"tokenizer.ggml.{name} "):
            GGUFReference(path).token_ids(texts)


@pytest.mark.parametrize("name", ["tokens", "scores", "token_type"])
def test_the_whole_vocabulary_is_compared(good, tmp_path, name):
    """Two rare tokens are exchanged, which no sample text has."""
    key = f"tokenizer.ggml.{name}"
    values = GGUFFile(good).keys[key]
    other = swapped(values) if name != "token_type" else [*values[:-1], 4]
    path = changed(good, tmp_path / "m.gguf", {key: other})
    (difference,) = differences(path)
    assert difference.startswith(f"{key} is first different at ")
    shorter = changed(good, tmp_path / "n.gguf", {key: values[:-1]})
    assert any(difference.startswith(key) for difference in differences(shorter))


@pytest.mark.parametrize(
    "key, value",
    [
        ("llama.context_length", 2 * LENGTH),
        ("llama.vocab_size", 421),
        ("llama.attention.head_count_kv", 4),
        ("llama.rope.dimension_count", 8),
        ("tokenizer.ggml.eos_token_id", 7),
    ],
)
def test_a_proof_names_the_key(good, tmp_path, key, value):
    proof = prove(changed(good, tmp_path / "m.gguf", {key: value}), against=model())
    assert not proof["equal"]
    assert all(reader["equal"] for reader in proof["readers"]), "no reader here sees it"
    (difference,) = proof["settings_that_differ"]
    assert difference.startswith(f"{key} is {value}, not ")
    assert f"NOT THE MODEL'S: {difference}" in describe(proof)


@pytest.mark.parametrize(
    "key, value",
    [
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", [4, 4]),
        ("llama.attention.key_length", 7),
        ("llama.block_count", 1),
        ("llama.context_length", "256"),
        ("llama.context_length", 2**32 - 1),
    ],
)
def test_a_file_that_cannot_be_run_is_refused_by_the_key(good, tmp_path, key, value):
    with pytest.raises(ValueError) as error:
        proof = prove(changed(good, tmp_path / "m.gguf", {key: value}), against=model())
        raise ValueError(str(proof["settings_that_differ"]))
    assert f"{key} is " in str(error.value)


def test_unknown_keys_are_listed(good, tmp_path):
    unknown = {
        "llama.attention.temperature_length": 8192,
        "general.sampling.temp": 0.5,
        "tokenizer.ggml.fim_pre_token_id": 7,
    }
    about = {"general.license.name": "Apache-2.0", "general.base_model.0.name": "x"}
    path = changed(good, tmp_path / "m.gguf", unknown | about)
    assert compare_keys(GGUFFile(path), model(), [LENGTH]) == ([], sorted(unknown))
    proof = prove(path, against=model())
    assert proof["settings_not_known"] == sorted(unknown)
    listed = ", ".join(sorted(unknown))
    assert f"NOT COMPARED, as they are not known here: {listed}" in describe(proof)


def test_the_names_are_those_of_the_package():
    names = set()
    for group in ("General", "LLM", "Attention", "Rope", "Tokenizer"):
        values = vars(getattr(library.constants.Keys, group)).values()
        names |= {v.replace("{arch}", "llama") for v in values if isinstance(v, str)}
    own = {*NEUTRAL, *READ_AS_FREQUENCIES, *NAMED_AS_INCOMPATIBLE, *WITHOUT_EFFECT}
    known = {f"llama.{key}" for key in own} | {*WITHOUT_EFFECT_IN_GENERAL}
    known |= NEUTRAL_OF_TOKENIZERS.keys() | TOKENIZER_KEYS
    # The package has no names for these, which llama.cpp reads.
    known -= {"llama.rope.scale_linear", "tokenizer.ggml.eom_token_id"}
    assert known <= names
    beginnings = {".".join(name.split(".")[:2]) for name in names if name.startswith("general.")}
    obeyed = {"architecture", "alignment", "file_type", "quantization_version", "sampling"}
    assert beginnings - {f"general.{name}" for name in obeyed} == {*ABOUT}


def test_merges_of_a_byte_level_tokenizer_are_compared(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=430)
    lm = LM(config, random_params(config), Tokenizer(byte_level_files("smollm")))
    good = export(lm, tmp_path / "good.gguf", to="gguf", dtype="float32")
    assert compare_keys(GGUFFile(good), lm, [WINDOW]) == ([], [])
    key = "tokenizer.ggml.merges"
    merges = GGUFFile(good).keys[key]
    path = changed(good, tmp_path / "m.gguf", {key: swapped(merges)})
    (difference,) = compare_keys(GGUFFile(path), lm, [WINDOW])[0]
    assert difference.startswith(f"{key} is first different at {len(merges) - 10}: ")
    texts = ["hello world", "def f(x): return 12"]
    expected = GGUFReference(good).token_ids(texts)
    implied = changed(good, tmp_path / "n.gguf", {"tokenizer.ggml.add_bos_token": None})
    assert GGUFReference(implied).token_ids(texts) == expected  # no BOS by itself
    for value, message in (
        (None, f"{key} is missing"),
        (["x"], f"{key} has 'x', which is no pair"),
    ):
        path = changed(good, tmp_path / "x.gguf", {key: value})
        with pytest.raises(ValueError, match=message):
            GGUFReference(path).token_ids(texts)
    scored = changed(good, tmp_path / "s.gguf", {"tokenizer.ggml.scores": [0.0] * 430})
    assert keys_not_read(GGUFFile(scored)) == [
        "tokenizer.ggml.scores is not read for a tokenizer of the model gpt2"
    ]


def test_a_key_or_a_tensor_that_is_there_twice_is_refused(good, tmp_path):
    data = good.read_bytes()
    for old, new in (
        (b"llama.attention.key_length", b"llama.attention.head_count"),
        (b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"),
    ):
        assert data.count(old) == 1
        path = tmp_path / "m.gguf"
        path.write_bytes(data.replace(old, new))
        with pytest.raises(ValueError, match=f"{new.decode()} is there twice"):
            GGUFReference(path)


def test_a_scale_of_attention_that_changes_nothing_is_accepted(good, tmp_path):
    neutral = {
        "llama.attention.scale": 1 / math.sqrt(CONFIG.head_dim),
        "llama.rope.scaling.yarn_ext_factor": 1.0,
        "llama.expert_count": 0,
        "llama.rope.scaling.finetuned": True,
    }
    path = changed(good, tmp_path / "m.gguf", neutral)
    assert compare_keys(GGUFFile(path), model(), [LENGTH]) == ([], [])
    lm = model(Linear(4.0))
    linear = export(lm, tmp_path / "l.gguf", to="gguf", dtype="float32")
    path = changed(linear, tmp_path / "n.gguf", {"llama.rope.scaling.yarn_ext_factor": 1.0})
    (difference,) = compare_keys(GGUFFile(path), lm, [LENGTH])[0]
    assert difference == "llama.rope.scaling.yarn_ext_factor is 1.0, not 0.0"
