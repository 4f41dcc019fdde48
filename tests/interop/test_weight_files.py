"""Weights as people really have them: what transformers loads from a directory, or one clear error.

Two sets of weights in a directory, PyTorch's files, prefixes of training tools, stale indices.
"""

import dataclasses
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ctxext.interop import hf, safetensors_files
from ctxext.interop.hf_weights import slots
from ctxext.interop.stored_weights import find_weights
from ctxext.model.config import LlamaConfig
from ctxext.rope import Unscaled
from support.hf_files import write_hf
from support.llamas import TINY, random_params, tokenizer

TIED = dataclasses.replace(TINY, tie_word_embeddings=True)
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def save(directory: Path, config: LlamaConfig = TINY, seed: int = 0, **options) -> Path:
    params = random_params(config, seed)
    write_hf(directory, config, params, Unscaled(), tokenizer(), dtype="float32", **options)
    return directory


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / FILE)


def expected(config: LlamaConfig = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    return {name: slot.get() for name, slot in slots(random_params(config, seed)).items()}


def transformers_weights(directory: Path) -> dict[str, np.ndarray]:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return {name: value.numpy() for name, value in model.state_dict().items()}


def assert_holds(directory: Path, weights: dict[str, np.ndarray], config: LlamaConfig = TINY):
    tensors = find_weights(directory, config)
    assert set(tensors) == {name for name in weights if name in expected(config)}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), weights[name], name)


def refused(directory: Path, config: LlamaConfig = TINY) -> str:
    with pytest.raises(ValueError) as error:
        find_weights(directory, config)
    assert "\n" not in str(error.value)
    assert str(directory) in str(error.value)
    return str(error.value)


def to_bin(directory: Path, shards: int = 1) -> None:
    """Replace model.safetensors by what torch.save wrote of such models, with an index if asked."""
    tensors = {name: torch.from_numpy(value) for name, value in tensors_of(directory).items()}
    (directory / FILE).unlink()
    if shards == 1:
        torch.save(tensors, directory / "pytorch_model.bin")
        return
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = names[number::shards]
        torch.save({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


# Two sets


def test_a_new_file_next_to_old_shards_is_refused_by_both_names(tmp_path):
    out = save(tmp_path / "m", max_shard_size=60_000)  # the old shards
    new = save(tmp_path / "new", seed=1)
    (new / FILE).rename(out / FILE)
    taken = transformers_weights(out)
    np.testing.assert_array_equal(taken[EMBEDDING], expected(seed=1)[EMBEDDING])
    message = refused(out)
    assert f"two sets of weights that are not the same, {FILE}, which transformers takes" in message
    assert f"and {INDEX} (first at model.embed_tokens.weight); keep one" in message
    (out / INDEX).unlink()
    assert_holds(out, taken)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_two_sets_of_the_same_numbers_are_one_model(dtype, tmp_path):
    out = save(tmp_path / "m", max_shard_size=60_000)
    other = save(tmp_path / "one")
    tensors = {name: torch.from_numpy(value) for name, value in tensors_of(other).items()}
    if dtype is not None:
        tensors = {name: value.bfloat16() for name, value in tensors.items()}
    torch.save(tensors, out / "pytorch_model.bin")
    if dtype is None:
        assert_holds(out, transformers_weights(out))
    else:
        dtypes = f"float32 in {INDEX}, bfloat16 in pytorch_model.bin"
        assert f"pytorch_model.bin (the same numbers in two dtypes: {dtypes})" in refused(out)
        tensors[HEAD][-1, -1] += 1
        torch.save(tensors, out / "pytorch_model.bin")
        # The first tensor differs by rounding alone, the last one does not.
        assert f"(first at {EMBEDDING}, {dtypes}, by more than rounding)" in refused(out)
    (other / FILE).rename(out / FILE)
    if dtype is None:
        assert_holds(out, expected())


def test_one_number_in_the_last_tensor_makes_a_difference(tmp_path):
    out = save(tmp_path / "m")
    stored = tensors_of(out)
    stored[HEAD][-1, -1] += 1e-6
    torch.save(
        {name: torch.from_numpy(value) for name, value in stored.items()}, out / "pytorch_model.bin"
    )
    assert "pytorch_model.bin (first at lm_head.weight)" in refused(out)
    # A comparison is remembered only as long as the files are the same.
    stored[HEAD][-1, -1] = tensors_of(out)[HEAD][-1, -1]
    torch.save(
        {name: torch.from_numpy(value) for name, value in stored.items()}, out / "pytorch_model.bin"
    )
    assert_holds(out, expected())


def test_an_index_without_its_shards_is_no_set(tmp_path):
    out = save(tmp_path / "m", max_shard_size=60_000)
    for shard in out.glob("model-*"):
        shard.unlink()
    assert "is missing; copy" in refused(out)
    (save(tmp_path / "new", seed=1) / FILE).rename(out / FILE)
    assert_holds(out, transformers_weights(out))


def test_trainable_params_next_to_a_model_are_its_own_or_refused(tmp_path):
    out = save(tmp_path / "m")
    norm = torch.from_numpy(tensors_of(out)["model.norm.weight"])
    torch.save({"model.norm.weight": norm}, out / "trainable_params.bin")
    assert_holds(out, expected())
    torch.save({"model.norm.weight": norm + 1}, out / "trainable_params.bin")
    assert "is not that of model.safetensors; LongLoRA trained it next to an" in refused(out)
    (out / FILE).unlink()
    assert "but trainable_params.bin; that is only what LongLoRA trains" in refused(out)


def test_a_link_to_nowhere_is_named(tmp_path):
    out = save(tmp_path / "m")
    (out / FILE).unlink()
    (out / FILE).symlink_to(tmp_path / "gone")
    assert "model.safetensors is a link to " in refused(out)


# PyTorch's files


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_pytorch_model_bin(shards, config, tmp_path):
    out = save(tmp_path / "m", config)
    to_bin(out, shards)
    assert_holds(out, transformers_weights(out), config)
    assert hf.read(out).config == config


def test_a_state_dict_of_parameters_and_a_view(tmp_path):
    out = save(tmp_path / "m")
    whole = torch.from_numpy(tensors_of(out)[HEAD].T.copy())
    tensors = {name: torch.nn.Parameter(torch.from_numpy(x)) for name, x in tensors_of(out).items()}
    tensors[HEAD] = torch.nn.Parameter(whole.t())
    (out / FILE).unlink()
    torch.save(tensors, out / "pytorch_model.bin")
    assert_holds(out, transformers_weights(out))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"state_dict": {"a": torch.ones(3)}, "epoch": 3}, "torch.save(state[NAME], FILE)"),
        ({"a": torch.ones(3), "args": {1: 2}}, "cannot be read"),
        (["a"], "cannot be read"),
        ({"a" * 10_000: 1}, "is not a tensor"),
        ({"a" * 10_000: torch.ones(3)}, "there are only 1 tensors"),
    ],
)
def test_other_archives_are_refused(state, message, tmp_path):
    out = save(tmp_path / "m")
    (out / FILE).unlink()
    torch.save(state, out / "pytorch_model.bin")
    text = refused(out)
    assert message in text
    assert len(text) < 500


class Evil:
    def __reduce__(self):
        return open, ("/tmp/never", "w")


def test_code_in_a_bin_is_never_run_and_safetensors_are_preferred(tmp_path):
    out = save(tmp_path / "m")
    (out / FILE).unlink()
    torch.save({"a": Evil()}, out / "pytorch_model.bin")
    assert "nothing in it was run" in refused(out)
    (out / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    assert "format of torch before 1.6" in refused(out)


def test_a_pointer_of_git_lfs_is_called_so(tmp_path):
    out = save(tmp_path / "m")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"
    (out / FILE).write_bytes(pointer)
    assert "model.safetensors is a pointer of Git LFS, not the file; run: git lfs pull" in (
        refused(out)
    )
    (out / FILE).rename(out / "pytorch_model.bin")
    assert "pytorch_model.bin is a pointer of Git LFS" in refused(out)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.fp16.safetensors", "if these are the weights, rename them to model.safetensors"),
        ("model-00001-of-00002.safetensors", "copy model.safetensors.index.json too"),
        ("pytorch_model.pt", "rename them to pytorch_model.bin"),
        ("consolidated.bin", "rename them to pytorch_model.bin"),
        ("pytorch_model-00001-of-00002.bin", "copy pytorch_model.bin.index.json too"),
        ("llama.gguf", "give the file itself, "),
        ("tf_model.h5", "save the model with transformers as safetensors"),
        ("consolidated.00.pth", "to have them read, remove config.json"),
        ("training_args.bin", "and no other weights; copy the checkpoint again"),
        ("optimizer.pt", "and no other weights; copy the checkpoint again"),
    ],
)
def test_files_that_are_there_instead_of_the_weights_are_named(name, message, tmp_path):
    out = save(tmp_path / "m")
    (out / FILE).rename(out / name)
    text = refused(out)
    assert "has neither model.safetensors nor model.safetensors.index.json" in text
    assert message in text


def test_weights_under_another_name_are_refused_not_passed_over(tmp_path):
    out = save(tmp_path / "m")
    stored = {name: value + 1 for name, value in tensors_of(out).items()}
    save_file(stored, out / "other.safetensors", metadata={"format": "pt"})
    settings = json.loads((out / "config.json").read_text())
    settings["transformers_weights"] = "other.safetensors"
    (out / "config.json").write_text(json.dumps(settings))
    np.testing.assert_array_equal(transformers_weights(out)[HEAD], stored[HEAD])
    with pytest.raises(ValueError, match="under another name .transformers_weights. is not supp"):
        hf.read_config(out)


# Names


def _prefixed(prefix):
    return lambda name: prefix + name


def _without_prefix(name):
    return name.removeprefix("model.")


@pytest.mark.parametrize(
    "rename",
    [_prefixed("_orig_mod."), _prefixed("module."), _prefixed("_orig_mod.module.")],
    ids=["compile", "ddp", "both"],
)
@pytest.mark.parametrize("config", [TINY, TIED], ids=["untied", "tied"])
def test_prefixes_of_wrappers_are_left_out(rename, config, tmp_path, caplog):
    out = save(tmp_path / "m", config)
    stored = tensors_of(out)
    save_file({rename(name): value for name, value in stored.items()}, out / FILE)
    assert_holds(out, expected(config), config)
    assert "transformers takes random numbers for such tensors" in caplog.text
    save_file({rename(name): value for name, value in stored.items()} | stored, out / FILE)
    assert "are both model" in refused(out, config) or "are both lm_head" in refused(out, config)


def test_wrapped_layers(tmp_path):
    out = save(tmp_path / "m")
    save_file(
        {
            name.replace("model.layers.0.", "model.layers.0._checkpoint_wrapped_module."): value
            for name, value in tensors_of(out).items()
        },
        out / FILE,
    )
    assert_holds(out, expected())


@pytest.mark.parametrize(
    ("config", "rename"),
    [
        (TINY, _without_prefix),
        (TIED, _without_prefix),
        (TINY, _prefixed("model.")),
        (TIED, lambda name: HEAD if name == EMBEDDING else name),
        (TIED, lambda name: HEAD if name == EMBEDDING else _without_prefix(name)),
    ],
    ids=["no model.", "no model., tied", "model. twice", "only the head", "only the head, bare"],
)
def test_names_that_transformers_reads_too(config, rename, tmp_path):
    out = save(tmp_path / "m", config)
    renamed = {rename(name): value for name, value in tensors_of(out).items()}
    save_file(renamed, out / FILE, metadata={"format": "pt"})
    weights = transformers_weights(out)
    np.testing.assert_array_equal(weights[EMBEDDING], expected(config)[EMBEDDING])
    assert_holds(out, weights, config)


@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.cos_cached",
        "model.layers.1.self_attn.rotary_emb.sin_cached",
        "rotary_emb.inv_freq",
        "model.rotary_pos_emb.inv_freq",
        "rope.freqs",
        "model.freqs_cis",
        "_orig_mod.model.rotary_emb.inv_freq",
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_rotary_buffers_of_any_name_and_dtype_are_ignored(name, dtype, tmp_path):
    out = save(tmp_path / "m")
    save_file(tensors_of(out) | {name: np.full(8, 7, dtype)}, out / FILE)
    assert_holds(out, expected())


FUSED = "model.layers.0.self_attn.qkv_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({HEAD: "score.weight"}, "score.weight belongs to the head of a classifier or reward"),
        ({HEAD: None}, "lacks 1 tensors, first lm_head.weight; set tie_word_embeddings if the"),
        ({"self_attn.q_proj": "self_attn.qkv_proj"}, f"{FUSED} belongs to fused projections"),
        ({"mlp.gate_proj": "mlp.gate_up_proj"}, "split them into q_proj, k_proj, v_proj, gate_pr"),
        ({"q_proj.weight": "q_proj.base_layer.weight"}, "adapters that are not merged: merge them"),
        ({"q_proj.weight": "q_proj.qweight"}, "q_proj.qweight belongs to quantized weights: use"),
        ({EMBEDDING: "tok_embeddings.weight"}, "tok_embeddings.weight belongs to Meta's names"),
        ({"model.": "language_model.model."}, "belongs to a model of images and text: save its"),
        ({"model.layers": "transformer.h"}, "it has 18 other tensors, such as transformer.h.0."),
    ],
)
def test_other_tensors_are_named_with_the_way_out(change, message, tmp_path):
    out = save(tmp_path / "m")
    ((old, new),) = change.items()
    renamed = {
        name.replace(old, new or "") if old in name else name: value
        for name, value in tensors_of(out).items()
    }
    renamed.pop("", None)
    save_file(renamed, out / FILE)
    text = refused(out)
    assert " lacks " in text
    assert message in text


# Indices


def _index(out: Path) -> dict:
    return json.loads((out / INDEX).read_text())


def _swap_shards(out):
    first, second, *_ = sorted(out.glob("model-*"))
    first.rename(out / "x")
    second.rename(first)
    (out / "x").rename(second)


def _duplicate(out):
    first, second, *_ = sorted(out.glob("model-*"))
    save_file(load_file(first) | load_file(second), second)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_swap_shards, "index.json is stale: model-00001-of"),
        (lambda out: sorted(out.glob("model-*"))[1].rename(out / "model-9.safetensors"), "is stal"),
        (_duplicate, "is in two shards of"),
    ],
)
def test_an_index_of_other_shards_is_called_stale(spoil, message, tmp_path):
    out = save(tmp_path / "m", max_shard_size=60_000)
    spoil(out)
    assert message in refused(out)


def test_a_tensor_that_the_index_forgot_is_read_as_transformers_reads_it(tmp_path):
    out = save(tmp_path / "m", max_shard_size=60_000)
    index = _index(out)
    del index["weight_map"]["model.norm.weight"]
    (out / INDEX).write_text(json.dumps(index))
    weights = transformers_weights(out)
    np.testing.assert_array_equal(weights["model.norm.weight"], expected()["model.norm.weight"])
    assert_holds(out, weights)


def test_a_header_that_would_take_minutes_is_not_parsed(tmp_path, monkeypatch):
    """A header of 97 MB of metadata takes the library and the JSON reader two minutes."""
    path = tmp_path / "model.safetensors"
    header = b'{"__metadata__": {"a": "' + b"x" * 100 + b'"}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert safetensors_files.open_file(path) == {}
    monkeypatch.setattr(safetensors_files, "MAX_HEADER", 100)
    with pytest.raises(ValueError, match="has a header of 127 bytes, more than any model needs"):
        safetensors_files.open_file(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + header)
    with pytest.raises(ValueError, match="is cut off or corrupt"):
        safetensors_files.open_file(path)
