"""Checkpoints that are converted without a model: the same bits, little memory, all or nothing."""

import contextlib
import dataclasses
import json
import platform
import signal
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ctxext.cli.main import main
from ctxext.export import convert, export
from ctxext.files import following_links, within
from ctxext.interop import gguf, hf, meta, safetensors_files
from ctxext.interop.hf_weights import StoredModel, WriteOptions, slots, storage_dtype
from ctxext.interop.lazy_tensor import BLOCK, LazyTensor, cast, numpy_dtype
from ctxext.interop.stored_weights import find_weights
from ctxext.loading import load
from ctxext.methods import label
from ctxext.methods.linear import Linear
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.decoder import param_shapes
from ctxext.rope import Unscaled
from support.hf_files import stored_model
from support.llamas import LENGTH, TINY, random_params, tokenizer
from support.umask import umask

SHAPES = {
    "plain": TINY,
    "tied": dataclasses.replace(TINY, tie_word_embeddings=True),
    "biased": dataclasses.replace(TINY, attention_bias=True, mlp_bias=True),
}
WORDS = {"float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}


def checkpoint(path: Path, config=TINY, dtype="float32", scaling=None) -> Path:
    """A checkpoint whose weights are written without the code under test."""
    params = slots(random_params(config))
    values = {
        name: np.ascontiguousarray(slot.get()).astype(numpy_dtype(dtype))
        for name, slot in params.items()
    }
    path.mkdir()
    save_file(values, path / "model.safetensors", metadata={"format": "pt"})
    settings = hf.config_json(
        config, scaling or Unscaled(), seq_len=config.max_position_embeddings, dtype=dtype
    )
    (path / "config.json").write_text(json.dumps(settings))
    for name, data in tokenizer().export_files(LENGTH).items():
        (path / name).write_bytes(data)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    for file in path.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_and_out_again_changes_no_bit(tmp_path, shape, dtype):
    first = checkpoint(tmp_path / "first", SHAPES[shape], dtype)
    convert(first, tmp_path / "base")
    convert(tmp_path / "base", tmp_path / "last", max_shard_size=40_000)
    expected = read_all(first)
    actual = read_all(tmp_path / "last")
    assert expected.keys() == actual.keys()
    assert len([*(tmp_path / "last").glob("*.safetensors")]) > 3
    for name, value in expected.items():
        assert value.dtype == actual[name].dtype == numpy_dtype(dtype)
        bits = value.view(WORDS[dtype])
        np.testing.assert_array_equal(actual[name].view(WORDS[dtype]), bits, name)
    assert hf.read_config(first) == hf.read_config(tmp_path / "last") == (SHAPES[shape], Unscaled())
    model = (first / "tokenizer.model").read_bytes()
    assert (tmp_path / "last" / "tokenizer.model").read_bytes() == model


@pytest.mark.parametrize("dtype", WORDS)
def test_files_equal_those_of_the_library(tmp_path, dtype):
    kind = numpy_dtype(dtype)
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (3, 5), "b": (7,), "c.é": (), "d": (0, 4), "e": (2, 1, 3)}
    arrays = {
        name: np.asarray(rng.standard_normal(shape)).astype(kind) for name, shape in shapes.items()
    }
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    entries = {name: LazyTensor(x.shape, dtype, lambda x=x: x) for name, x in arrays.items()}
    safetensors_files.write_file(tmp_path / "ours", entries, dtype)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_converting_with_a_method_equals_exporting_a_loaded_model(tmp_path):
    source = checkpoint(tmp_path / "m", dtype="float16")
    convert(source, tmp_path / "passed", methods=[Yarn(4.0)], dtype="bfloat16")
    loaded = load(source, method=Yarn(4.0))
    export(
        loaded,
        tmp_path / "loaded",
        dtype="bfloat16",
        card={"base model": "m", "method": label([Yarn(4.0)])},
    )
    files = {file.name for file in (tmp_path / "passed").iterdir()}
    assert files == {file.name for file in (tmp_path / "loaded").iterdir()}
    assert "model.safetensors" in files
    for name in files:
        assert (tmp_path / "passed" / name).read_bytes() == (
            tmp_path / "loaded" / name
        ).read_bytes(), name


def test_dtype_and_window_are_kept_by_default(tmp_path):
    source = checkpoint(tmp_path / "m", dtype="float16", scaling=Linear(4.0))
    convert(source, tmp_path / "same")
    assert hf.window(tmp_path / "same") == LENGTH
    assert hf.read_config(tmp_path / "same")[1] == Linear(4.0)
    assert storage_dtype(find_weights(tmp_path / "same", TINY).values()) == "float16"
    stored = load_file(source / "model.safetensors")
    mixed = {
        name: x.astype(ml_dtypes.bfloat16) if "norm" in name else x for name, x in stored.items()
    }
    save_file(mixed, source / "model.safetensors")
    # Neither of the two 16-bit types holds every number of the other.
    convert(source, tmp_path / "mixed")
    for name, value in read_all(tmp_path / "mixed").items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, mixed[name].astype(np.float32), name)


def test_a_window_that_the_factor_does_not_reach_is_named_as_a_contradiction(tmp_path, capsys):
    source = checkpoint(tmp_path / "m", scaling=Yarn(4.0))
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 512}))
    for command in ("import", "export"):
        argv = [command, str(source), "--out", str(tmp_path / command)]
        assert main(argv) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "max_position_embeddings is 512, but Yarn with factor 4 makes 256 tokens of" in said
        assert "the 64 of pre-training. Set it to 256" in said
        assert main([*argv, "--allow-shorter"]) == 0
        assert hf.window(tmp_path / command) == 256
    # A shorter length that is asked for is no contradiction.
    argv = ["export", str(source), "--seq-len", "300", "--out", str(tmp_path / "short")]
    assert main(argv) == 2
    assert "would declare 256 tokens" in capsys.readouterr().err


def test_the_card_of_a_converted_checkpoint_says_how_it_was_made(tmp_path, monkeypatch):
    """The words of the command, of a path its last name, and the versions in use."""
    source = checkpoint(tmp_path / "m")
    words = ["export", str(source), "--method", "yarn", "--factor", "4", "--out"]
    monkeypatch.setattr(sys, "argv", ["/opt/bin/ctxext", *words, str(tmp_path / "out")])
    assert main(sys.argv[1:]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- base model: m\n- method: yarn(factor=4)\n" in card
    assert "- command: ctxext export m --method yarn --factor 4 --out out\n" in card
    assert f"- versions: python {platform.python_version()}, ctxext" in card
    assert f"numpy {np.__version__}" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, BLOCK + 10, -1])
def test_every_element_is_checked(dtype, bad, at):
    values = np.full(BLOCK + 100_000, 3e4, numpy_dtype(dtype))
    np.testing.assert_array_equal(cast(values, values.dtype, "x"), values)
    values[at] = bad
    with pytest.raises(ValueError, match="x is not finite"):
        cast(values, values.dtype, "x")


def test_a_checkpoint_that_is_corrupt_in_the_middle_leaves_nothing(tmp_path):
    source = checkpoint(tmp_path / "m")
    stored = load_file(source / "model.safetensors")
    stored["model.norm.weight"] = stored["model.norm.weight"] * np.nan
    save_file(stored, source / "model.safetensors")
    with pytest.raises(ValueError, match="model.norm.weight in .*model.safetensors is not finite"):
        convert(source, tmp_path / "out")
    with pytest.raises(ValueError, match="SelfExtend is a way to run a model"):
        convert(source, tmp_path / "out", methods=[SelfExtend(4, 16)])
    (tmp_path / "run" / "base").mkdir(parents=True)
    (tmp_path / "run" / "base" / "model.json").write_text("{}")
    with pytest.raises(ValueError, match="run is a run directory, not a checkpoint"):
        convert(tmp_path / "run", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "run"]


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a Python script in its own process."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


MEMORY = """
import sys
from ctxext.export import convert
from ctxext.methods.yarn import Yarn

def peak():
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

# A small checkpoint first, to import and compile everything.
convert(sys.argv[1], sys.argv[3], methods=[Yarn(2.0)])
before = peak()
convert(sys.argv[2], sys.argv[4], methods=[Yarn(4.0)])
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc/self/status"
)
def test_a_conversion_holds_one_tensor_not_the_checkpoint(tmp_path):
    config = dataclasses.replace(
        TINY, hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, head_dim=256
    )
    shapes = {name: slot.shape for name, slot in slots(param_shapes(config)).items()}
    rng = np.random.default_rng(0)
    entries = {
        name: LazyTensor(
            shape, "bfloat16", lambda s=shape: rng.random(s, np.float32).astype("bfloat16")
        )
        for name, shape in shapes.items()
    }
    model = StoredModel(config, Unscaled(), config.max_position_embeddings, entries, tokenizer())
    hf.write(tmp_path / "big", model, WriteOptions("bfloat16", max_shard_size=10**8))
    checkpoint(tmp_path / "small")
    size = sum(file.stat().st_size for file in (tmp_path / "big").glob("*.safetensors"))
    largest = 2 * max(int(np.prod(shape)) for shape in shapes.values())
    folders = [tmp_path / name for name in ("small", "big", "small out", "big out")]
    done = run_script(MEMORY, *folders)
    assert done.returncode == 0, done.stderr
    assert size > 180e6
    assert largest < 10e6
    assert int(done.stdout) < 2 * largest, "more than a tensor was in memory"
    assert hf.read_config(tmp_path / "big out")[1] == Yarn(4.0)


KILLED = """
import os, signal, sys
from ctxext.export import convert
from ctxext.interop import lazy_tensor

calls, real = [], lazy_tensor.cast

def cast(array, dtype, name, out):
    calls.append(name)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(array, dtype, name, out)

lazy_tensor.cast = cast
convert(sys.argv[1], sys.argv[2], max_shard_size=int(sys.argv[3]))
"""


@pytest.mark.parametrize("max_shard_size", [10**9, 60_000])
def test_a_killed_export_never_looks_finished(tmp_path, max_shard_size):
    checkpoint(tmp_path / "m")
    done = run_script(KILLED, tmp_path / "m", tmp_path / "out", max_shard_size)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (partial,) = (path for path in tmp_path.glob(".out.*") if path.is_dir())
    assert [*partial.glob("*.safetensors")], "killed before it wrote a file"
    with pytest.raises(ValueError, match="cut off or corrupt|has neither model.safetensors nor"):
        find_weights(partial, TINY)
    convert(tmp_path / "m", tmp_path / "other")
    assert partial.exists(), "an export removes only its own partial files"
    convert(tmp_path / "m", tmp_path / "out")
    assert hf.read_config(tmp_path / "out")[0] == TINY
    assert not [*tmp_path.glob(".out.*")]


def test_links_out_of_the_directory_are_refused_except_into_the_hub_cache(tmp_path):
    source = checkpoint(tmp_path / "m")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("model.safetensors", "tokenizer.model", "config.json"):
        (source / name).rename(elsewhere / name)
        (source / name).symlink_to(elsewhere / name)
        with pytest.raises(
            ValueError, match=f"{name} is a link to .*elsewhere.*put a copy there instead"
        ):
            load(source)
        with following_links():
            assert load(source).config == TINY
        (source / name).unlink()
        (elsewhere / name).rename(source / name)
    # A link within the directory is fine.
    (source / "model.safetensors").rename(source / "weights.safetensors")
    (source / "model.safetensors").symlink_to("weights.safetensors")
    (tmp_path / "linked").symlink_to(source)
    assert load(tmp_path / "linked").config == TINY
    snapshot = tmp_path / "models--x" / "snapshots" / "0123"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(source.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load(snapshot).config == TINY
    for allowed in (contextlib.nullcontext(), following_links()):
        with allowed, pytest.raises(ValueError, match="outside the directory"):
            within(snapshot, "../../other")


def test_another_config_on_linked_weights(tmp_path):
    source = checkpoint(tmp_path / "m")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (linked / file.name).symlink_to(file)
    settings = json.loads((source / "config.json").read_text())
    (linked / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 0.25}))
    argv = ["import", str(linked), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert main([*argv, "--follow-links"]) == 0
    assert hf.read_config(tmp_path / "out")[0] == dataclasses.replace(TINY, rms_norm_eps=0.25)
    with pytest.raises(ValueError, match="allow it with --follow-links"):
        load(linked)


@pytest.mark.parametrize(("mask", "file_mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_an_export(tmp_path, mask, file_mode):
    """Every file of every format, also those that a library writes."""
    model = stored_model(TINY, random_params(TINY), Yarn(4.0), tokenizer(), seq_len=LENGTH)
    with umask(mask):
        hf.write(tmp_path / "hf", model, WriteOptions("float32"))
        meta.write(tmp_path / "meta", model, WriteOptions("float32"))
        if find_spec("gguf"):
            gguf.write(tmp_path / "model.gguf", model, WriteOptions("float32"))
    paths = sorted(tmp_path.rglob("*"))
    assert len(paths) > 12
    for path in paths:
        expected = 0o777 & ~mask if path.is_dir() else file_mode
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
