"""Hugging Face directories: bit-exact round trips, and one clear error for each corrupt one."""

import dataclasses
import errno
import json
import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ctxext.interop import hf, hub, safetensors_files
from ctxext.interop.hf_weights import slots, storage_dtype
from ctxext.interop.lazy_tensor import numpy_dtype
from ctxext.interop.stored_weights import find_weights
from ctxext.methods.linear import Linear
from ctxext.methods.yarn import Yarn
from ctxext.rope import Unscaled
from ctxext.tokenization.tokenizer import load_tokenizer
from support.hf_files import read_params, write_hf
from support.llamas import LENGTH, TINY, random_params, tokenizer

SHAPES = {
    "gqa": TINY,
    "mha": dataclasses.replace(TINY, num_key_value_heads=4),
    "tied": dataclasses.replace(TINY, tie_word_embeddings=True),
    "biased": dataclasses.replace(
        TINY, attention_bias=True, mlp_bias=True, head_dim=24, hidden_act="gelu"
    ),
    "three-eos": dataclasses.replace(
        TINY, eos_token_id=(2, 5, 7), pad_token_id=0, bos_token_id=None
    ),
}


def save(
    directory: Path, config=TINY, params=None, scaling=None, dtype="float32", **options
) -> Path:
    params = random_params(config) if params is None else params
    write_hf(directory, config, params, scaling or Unscaled(), tokenizer(), dtype=dtype, **options)
    return directory


def assert_equal_trees(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], dict):
            assert_equal_trees(a[key], b[key])
        else:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], key)


@pytest.mark.parametrize("max_shard_size", [10**9, 40_000], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_is_bit_exact(tmp_path, shape, dtype, max_shard_size):
    config = SHAPES[shape]
    params = random_params(config, dtype=numpy_dtype(dtype))
    out = save(tmp_path / "m", config, params, Yarn(4.0), dtype, max_shard_size=max_shard_size)
    files = sorted(out.glob("*.safetensors"))
    if max_shard_size == 10**9:
        assert len(files) == 1
    else:
        assert files == sorted(out.glob("model-*-of-*"))
    assert (out / safetensors_files.INDEX_FILE).exists() == (max_shard_size != 10**9)
    assert hf.read_config(out) == (config, Yarn(4.0))
    assert_equal_trees(read_params(out, config, dtype), params)
    assert storage_dtype(find_weights(out, config).values()) == dtype
    assert hf.window(out) == LENGTH


def test_names_and_orientation_are_those_of_hf(tmp_path):
    params = random_params()
    stored = load_file(save(tmp_path / "m") / "model.safetensors")
    assert len(stored) == 3 + 2 * 9
    layers = params["segments"]["0"]
    key = layers["self_attn"]["k_proj"]["kernel"]
    norm = layers["input_layernorm"]["weight"]
    np.testing.assert_array_equal(stored["model.layers.1.self_attn.k_proj.weight"], key[1].T)
    np.testing.assert_array_equal(stored["model.layers.0.input_layernorm.weight"], norm[0])
    np.testing.assert_array_equal(stored["lm_head.weight"], params["lm_head"]["kernel"].T)
    np.testing.assert_array_equal(
        stored["model.embed_tokens.weight"], params["embed_tokens"]["embedding"]
    )


def test_shards_are_complete_and_within_the_limit(tmp_path):
    out = save(tmp_path / "m", max_shard_size=60_000)
    index = json.loads((out / safetensors_files.INDEX_FILE).read_text())
    tensors = {}
    for file in set(index["weight_map"].values()):
        shard = load_file(out / file)
        assert sum(x.nbytes for x in shard.values()) <= 60_000 or len(shard) == 1
        assert all(index["weight_map"][name] == file for name in shard)
        tensors |= shard
    assert tensors.keys() == index["weight_map"].keys() == slots(random_params()).keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert index["metadata"]["total_size"] == 4 * TINY.num_parameters


def test_layers_of_many_segments_keep_their_order(tmp_path):
    params = random_params()
    layers = params["segments"]["0"]

    def select(tree, index):
        return {k: select(v, index) if isinstance(v, dict) else v[index] for k, v in tree.items()}

    segments = {"1": select(layers, slice(1, 2)), "0": select(layers, slice(0, 1))}
    out = save(tmp_path / "m", params=params | {"segments": segments})
    assert_equal_trees(read_params(out, TINY), params)


def test_config_of_old_llama_files(tmp_path):
    data = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "use_cache": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(data))
    config, scaling = hf.read_config(tmp_path)
    assert (config.num_key_value_heads, config.head_dim, config.rope_theta) == (32, 128, 10000.0)
    assert config.tie_word_embeddings is False
    assert config.attention_bias is False
    assert config.mlp_bias is False
    assert (config.bos_token_id, config.eos_token_id) == (1, 2)
    assert config.max_position_embeddings == 2048
    assert scaling == Unscaled()
    assert config.num_parameters == 6_738_415_616


def test_files_next_to_the_weights(tmp_path):
    out = save(
        tmp_path / "m",
        scaling=Linear(4.0),
        dtype="bfloat16",
        card={"method": "linear x4", "summary": "a | b"},
    )
    names = {p.name for p in out.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for file in out.glob("*.json"):
        json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == LENGTH
    card = (out / "README.md").read_text()
    assert "method: linear x4" in card
    assert "a | b" in card
    assert '"factor": 4.0' in card


def test_derived_buffers_and_a_redundant_head_are_ignored(tmp_path):
    out = save(tmp_path / "m", SHAPES["tied"])
    file = out / "model.safetensors"
    stored = load_file(file)
    embedding = stored["model.embed_tokens.weight"]
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    save_file(stored | buffer | {"lm_head.weight": embedding}, file)
    assert_equal_trees(read_params(out, SHAPES["tied"]), random_params(SHAPES["tied"]))
    save_file(stored | {"lm_head.weight": embedding + 1}, file)
    with pytest.raises(ValueError, match="lm_head.weight .* differs from the embedding"):
        read_params(out, SHAPES["tied"])


def test_stored_dtypes_may_be_mixed(tmp_path):
    out = save(tmp_path / "m")
    stored = load_file(out / "model.safetensors")
    mixed = {}
    for name, value in stored.items():
        dtype = value.dtype
        if ".mlp." in name:
            dtype = np.float16
        elif ".self_attn." in name:
            dtype = ml_dtypes.bfloat16
        mixed[name] = value.astype(dtype)
    save_file(mixed, out / "model.safetensors")
    read_slots = slots(read_params(out, TINY))
    for name, value in mixed.items():
        np.testing.assert_array_equal(read_slots[name].get(), value.astype(np.float32))
    assert storage_dtype(find_weights(out, TINY).values()) == "float32"


# Changes that corrupt a good directory.
def _edit(name, **changes):
    def edit(out):
        data = json.loads((out / name).read_text())
        data |= changes
        (out / name).write_text(json.dumps({k: v for k, v in data.items() if v != "DELETE"}))

    return edit


def _map(name, file):
    def edit(out):
        index = json.loads((out / safetensors_files.INDEX_FILE).read_text())
        index["weight_map"][name] = file
        (out / safetensors_files.INDEX_FILE).write_text(json.dumps(index))

    return edit


def _tensor(name, change):
    def edit(out):
        index = json.loads((out / safetensors_files.INDEX_FILE).read_text())
        file = out / index["weight_map"][name]
        stored = load_file(file)
        value = change(stored.pop(name))
        if value is not None:
            stored[name] = value
        save_file(stored, file)

    return edit


def _cut(count):
    def edit(out):
        file = sorted(out.glob("*.safetensors"))[0]
        file.write_bytes(file.read_bytes()[:count])

    return edit


def _long_header(out):
    file = sorted(out.glob("*.safetensors"))[0]
    file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:])


NORM = "model.norm.weight"
EMBED = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "corrupt, message",
    [
        (
            lambda out: sorted(out.glob("*.safetensors"))[0].unlink(),
            r"model-00001-of-\d+.safetensors is missing; copy",
        ),
        (_cut(-5), "cut off or corrupt"),
        (_cut(4), "cut off or corrupt"),
        (_cut(0), "cut off or corrupt"),
        (_long_header, "cut off or corrupt"),
        (
            _tensor(NORM, lambda x: x[:-1]),
            r"model.norm.weight .* has shape \[63\], but config.json requires \[64\]",
        ),
        (_tensor(EMBED, lambda x: x.T.copy()), r"embed_tokens.weight .* has shape \[64, 420\]"),
        (_tensor(NORM, lambda x: x.astype(np.int8)), "has dtype I8; only BF16, F16 and F32"),
        (_tensor(NORM, lambda x: x.astype(np.float64)), "has dtype F64"),
        (_tensor(NORM, lambda x: x * np.nan), r"model.norm.weight in .*safetensors is not finite"),
        (
            _tensor(NORM, lambda x: None),
            "does not hold model.norm.weight, which the index lists",
        ),
        (
            _map(NORM, "../other/model.safetensors"),
            "names the shard '../other/model.safetensors'; shards must be in",
        ),
        (_map(NORM, "/etc/x.safetensors"), "shards must be in the same directory"),
        (_map(NORM, "..\\x.safetensors"), "shards must be in the same directory"),
        (_map(NORM, "model.bin"), "shards must be in the same directory"),
        (_map(NORM, 3), "shards must be in the same directory"),
        (_map("model.layers.0.mlp.extra.weight", "model-00001-of-00001.safetensors"), "is missing"),
        (_edit(safetensors_files.INDEX_FILE, weight_map={}), "has no weight_map"),
        (lambda out: (out / safetensors_files.INDEX_FILE).write_text("[]"), "has no weight_map"),
        (lambda out: (out / safetensors_files.INDEX_FILE).write_text("{"), "not valid JSON"),
        (
            lambda out: (out / safetensors_files.INDEX_FILE).unlink(),
            "has neither model.safetensors nor",
        ),
        (
            _edit("config.json", num_hidden_layers=3),
            "lacks 9 tensors, first model.layers.2.input_layernorm.weight",
        ),
        (_edit("config.json", num_hidden_layers=1), "has 9 tensors that model_type llama does not"),
        (
            _edit("config.json", attention_bias=True),
            "lacks 8 tensors, first model.layers.0.self_attn.k_proj.bias",
        ),
        (
            _edit("config.json", tie_word_embeddings=True),
            "lm_head.weight .* differs from the embedding",
        ),
        (_edit("config.json", num_key_value_heads=4), "one of the two is of another model"),
        (
            _edit("config.json", model_type="gpt2"),
            "model_type 'gpt2' is not supported, only 'llama', 'falcon'",
        ),
        (_edit("config.json", hidden_act="swish2"), "hidden_act 'swish2' is not supported"),
        (
            _edit("config.json", rms_norm_eps="DELETE", vocab_size="DELETE"),
            "vocab_size, rms_norm_eps missing",
        ),
        (
            _edit("config.json", num_hidden_layers="2"),
            "num_hidden_layers must be an integer .*, got '2'",
        ),
        (_edit("config.json", head_dim=16.0), "head_dim must be an integer"),
        (_edit("config.json", quantization_config={"bits": 4}), "quantized weights"),
        (_edit("config.json", num_key_value_heads=3), "not a multiple of"),
        (_edit("config.json", head_dim=None, hidden_size=66), "hidden_size 66 is not a multiple"),
        (lambda out: (out / "config.json").unlink(), "config.json does not exist"),
        (lambda out: (out / "config.json").write_text("[1]"), "model_type None is not supported"),
    ],
)
def test_a_corrupt_directory_gives_one_clear_error(tmp_path, corrupt, message):
    out = save(tmp_path / "m", max_shard_size=60_000)
    corrupt(out)
    with pytest.raises(ValueError, match=message) as error:
        config, _ = hf.read_config(out)
        read_params(out, config)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_unknown_dtype_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError, match="dtype 'float8' is not known; choose one of float32, float16, bfloat16"
    ):
        save(tmp_path / "m", dtype="float8")
    assert not any(tmp_path.iterdir())


def test_tokenizer_must_fit_the_vocabulary(tmp_path):
    small = dataclasses.replace(TINY, vocab_size=400)
    with pytest.raises(
        ValueError, match="the tokenizer has 420 ids but the model's vocab_size is 400"
    ):
        save(tmp_path / "m", small)
    assert not any(tmp_path.iterdir())


def test_tokenizer_of_another_model_is_refused_on_load(tmp_path):
    out = save(tmp_path / "m")
    load_tokenizer(out)
    _edit("config.json", vocab_size=419)(out)
    with pytest.raises(
        ValueError, match="the tokenizer has 420 ids but the model's vocab_size is 419"
    ):
        load_tokenizer(out)


def test_values_that_float16_cannot_hold_are_refused(tmp_path):
    params = random_params()
    params["norm"]["weight"][3] = 70000.0
    with pytest.raises(
        ValueError, match="model.norm.weight overflows float16; use bfloat16 or float32"
    ):
        save(tmp_path / "m", params=params, dtype="float16")
    assert not any(tmp_path.iterdir())
    save(tmp_path / "m", params=params, dtype="bfloat16")


def test_parameters_of_another_shape_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="do not fit the configuration, first at model.layers.0.mlp.down_proj"
    ):
        save(tmp_path / "m", dataclasses.replace(TINY, intermediate_size=100), random_params())
    assert not any(tmp_path.iterdir())


def test_existing_directory_is_not_touched(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="already exists"):
        save(tmp_path / "m")
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("file", ["second shard", "config"])
def test_full_disk_leaves_nothing(tmp_path, monkeypatch, file):
    full = OSError(errno.ENOSPC, "No space left on device")
    write_file = safetensors_files.write_file
    calls = []

    def write_json_fails(path, value):
        raise full

    def second_write_fails(path, *args):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise full
        write_file(path, *args)

    if file == "config":
        monkeypatch.setattr(hf, "write_json", write_json_fails)
    else:
        monkeypatch.setattr(safetensors_files, "write_file", second_write_fails)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path / "m", max_shard_size=60_000)
    assert not any(tmp_path.iterdir())


def test_hub_names(tmp_path, monkeypatch):
    import huggingface_hub

    assert hub.resolve(tmp_path) == tmp_path
    with pytest.raises(
        ValueError, match="nowhere does not exist; give a checkpoint directory, or a hub name"
    ):
        hub.resolve("nowhere")
    with pytest.raises(ValueError, match="does not exist"):
        hub.resolve("./some/deep/path")
    request = {}

    def download(name, *, allow_patterns, repo_type="model"):
        request.update(name=name, patterns=allow_patterns, kind=repo_type)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert hub.resolve("owner/model-7b") == tmp_path
    # Only where there is nothing else, and only what is read without unpickling.
    assert [pattern for pattern in request["patterns"] if pattern.endswith(".bin")] == [
        "pytorch_model.bin"
    ]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hub.resolve("owner/model-7b") == tmp_path
    assert request["name"] == "owner/model-7b"
    assert not any(
        pattern.endswith((".bin", ".py", ".pth", "*")) for pattern in request["patterns"]
    )
    assert "README.md" in request["patterns"]  # for the license
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": "../*"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.resolve("owner/model-7b") == tmp_path
    # Not consolidated.safetensors, the same weights once more.
    weights = [pattern for pattern in request["patterns"] if pattern.endswith(".safetensors")]
    assert weights == ["model.safetensors", *shards]
    assert not any("*" in pattern for pattern in request["patterns"])
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert hub.resolve("owner/model-7b") == tmp_path
    assert hub.resolve("owner/books", dataset=True) == tmp_path
    assert request["kind"] == "dataset"
    assert "*.parquet" in request["patterns"]
    assert not any(".py" in pattern for pattern in request["patterns"])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *name: " of ".join(name[::-1]))
    assert str(hub.resolve("owner/model-7b/m.Q4_K_M.gguf")) == "m.Q4_K_M.gguf of owner/model-7b"
    assert str(hub.resolve("owner/m/sub/m.gguf")) == "sub/m.gguf of owner/m"
    with pytest.raises(ValueError, match="m.gguf does not exist"):
        hub.resolve("owner/m/../m.gguf")
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "README.md").write_text("GGUF files of a model")
    files = ["README.md", "b.gguf", "a.gguf"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: files)
    with pytest.raises(ValueError, match="owner/m has GGUF files .* for example owner/m/a.gguf$"):
        hub.resolve("owner/m")

    def offline(name, **_):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError, match="owner/model-7b .* cannot be downloaded: cannot reach the hub$"
    ):
        hub.resolve("owner/model-7b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'ctxext\[hub\]'"):
        hub.resolve("owner/model-7b")
