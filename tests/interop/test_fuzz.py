"""Files with any content raise one clear error or give exactly what independent readers give.

They never cause a crash or a hang.
"""

import functools
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ctxext.interop import hf, peft_reader, peft_writer, safetensors_files
from ctxext.interop.hf_weights import slots
from ctxext.interop.stored_weights import find_weights
from ctxext.methods.yarn import Yarn
from ctxext.model.trainable import LoRA
from ctxext.tokenization.tokenizer import CONFIG, JSON, MODEL, load_tokenizer
from support.hf_files import read_params, write_hf
from support.llamas import LENGTH, TINY, random_params, tokenizer

QUICK = 60
LONG = 2000
SINGLE = safetensors_files.SINGLE_FILE


def fuzz(*strategies: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """Run a check on a few examples by default, and on thousands in the slow tests."""

    def decorate(check: Callable) -> Callable:
        def run(count: int) -> None:
            options = settings(
                max_examples=count,
                deadline=5000,
                database=None,
                derandomize=count == QUICK,
                suppress_health_check=list(HealthCheck),
            )
            options(given(*strategies)(check))()

        run.__name__ = check.__name__
        run.__doc__ = check.__doc__
        counts = [QUICK, pytest.param(LONG, marks=pytest.mark.slow)]
        return pytest.mark.parametrize("count", counts)(run)

    return decorate


NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**24, 2**31, 2**32, 2**63, 2**64, 10**400, -(2**63)]),
    st.booleans(),
    st.floats(),
    st.sampled_from([0.0, 1e-300, 1e300, 1e-5, 1.0, 2.0, 10000.0]),
)
SCALARS = st.one_of(
    NUMBERS,
    st.none(),
    st.text(max_size=6),
    st.sampled_from(
        [
            "linear",
            "yarn",
            "dynamic",
            "llama3",
            "longrope",
            "su",
            "default",
            "proportional",
            "silu",
            "../x",
            "/etc/passwd",
            "model.safetensors",
            "F32",
            "BF16",
            "<s>",
            "[PAD]",
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
EDITS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(["set", "cut", "add"])),
    min_size=1,
    max_size=4,
)


@functools.cache
def good() -> Path:
    """A valid directory of several shards, next to `one` with a single file."""
    out = Path(tempfile.mkdtemp(prefix="fuzz")) / "good"
    write_hf(
        out, TINY, random_params(), Yarn(4.0), tokenizer(), dtype="float32", max_shard_size=60_000
    )
    write_hf(out.parent / "one", TINY, random_params(), Yarn(4.0), tokenizer(), dtype="float32")
    return out


@pytest.fixture(autouse=True, scope="module")
def _clean():
    yield
    shutil.rmtree(good().parent)


def directory(name: str, **files: bytes) -> Path:
    """A copy of a good directory with some files replaced."""
    out = good().parent / "bad"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(good().parent / name, out)
    for file, data in files.items():
        (out / file).write_bytes(data)
    return out


def edited(data: bytes, edits: list[tuple[int, int, str]], limit: int | None = None) -> bytes:
    """The data after some edits to its first `limit` bytes."""
    out = bytearray(data)
    for at, value, kind in edits:
        at %= max(1, min(len(out), limit or len(out)))
        if kind == "cut":
            del out[at : at + 1 + value % 8]
        elif kind == "add":
            out[at:at] = bytes([value])
        else:
            out[at : at + 1] = bytes([value])
    return bytes(out)


def outcome(work: Callable[[], Any]) -> Any:
    """The result of `work`, or None if it raises one clear error."""
    try:
        return work()
    except ValueError as error:
        # As the command line prints it; names in files may contain line breaks.
        line = " ".join(str(error).split())
        assert 20 < len(line) < 2000, error
        return None


def weights(path: Path) -> None:
    """Either refused, or equal to what the library reads from the same files."""
    params = outcome(lambda: read_params(path, TINY))
    if params is None:
        return
    stored = {}
    for file in path.glob("*.safetensors"):
        stored |= load_file(file)
    for name, slot in slots(params).items():
        np.testing.assert_array_equal(slot.get(), stored[name].astype(np.float32), name)
    assert all(np.isfinite(slot.get()).all() for slot in slots(params).values())


@fuzz(EDITS)
def test_bytes_of_the_header(edits):
    data = (good().parent / "one" / SINGLE).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    weights(directory("one", **{SINGLE: edited(data, edits, end + 64)}))


@fuzz(st.sampled_from(["dtype", "shape", "data_offsets", "name"]), st.integers(0, 100), VALUES)
def test_fields_of_the_header(key, which, value):
    data = (good().parent / "one" / SINGLE).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    name = [*header][1 + which % (len(header) - 1)]
    if key == "name":
        header[str(value)] = header.pop(name)
    else:
        header[name][key] = value
    text = json.dumps(header).encode()
    weights(directory("one", **{SINGLE: struct.pack("<Q", len(text)) + text + data[end:]}))


@fuzz(
    st.sampled_from(["weight_map", "entry", "metadata", "all", "name"]), st.integers(0, 100), VALUES
)
def test_index(key, which, value):
    index = json.loads((good() / safetensors_files.INDEX_FILE).read_text())
    name = [*index["weight_map"]][which % len(index["weight_map"])]
    if key == "entry":
        index["weight_map"][name] = value
    elif key == "name":
        index["weight_map"][str(value)] = index["weight_map"].pop(name)
    elif key == "all":
        index = value
    else:
        index[key] = value
    weights(directory("good", **{safetensors_files.INDEX_FILE: json.dumps(index).encode()}))


@fuzz(EDITS)
def test_bytes_of_the_index(edits):
    data = (good() / safetensors_files.INDEX_FILE).read_bytes()
    weights(directory("good", **{safetensors_files.INDEX_FILE: edited(data, edits)}))


KEYS = [
    *json.loads(json.dumps(hf.config_json(TINY, Yarn(4.0), seq_len=LENGTH, dtype="float32"))),
    "max_sequence_length",
    "quantization_config",
    "partial_rotary_factor",
]
ROPE = [
    "rope_type",
    "type",
    "factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
    "short_mscale",
    "long_mscale",
    "partial_rotary_factor",
    "rope_theta",
]


def config(data: Any) -> None:
    """Either refused, or read with the fields of the file and valid frequencies."""
    path = directory("one", **{"config.json": json.dumps(data).encode()})
    result = outcome(lambda: (*hf.read_config(path), hf.window(path)))
    if result is None:
        return
    config, scaling, window = result
    for key in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "rms_norm_eps",
        "intermediate_size",
    ):
        assert getattr(config, key) == data[key]
        assert type(data[key]) in (int, float)
    rope = scaling.rope(config.rope_base(), window)
    assert rope.inv_freq.shape == (config.head_dim // 2,)
    assert np.isfinite(rope.inv_freq).all()
    assert (rope.inv_freq >= 0).all()
    assert np.isfinite(rope.attention_factor)
    assert type(window) is int
    assert window >= config.max_position_embeddings
    outcome(lambda: find_weights(path, config))


ADAPTER_KEYS = [
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "bias",
    "init_lora_weights",
    "use_dora",
    "use_rslora",
    "target_parameters",
]
PATTERNS = st.one_of(
    VALUES,
    st.text(alphabet="()*+?|.a_{}1,^$\\[]q", max_size=30),
    st.dictionaries(st.text(alphabet="(*+?|.q_projv)", max_size=12), NUMBERS, max_size=3),
    st.lists(st.text(alphabet="(*+?|.q_projv)", max_size=12), max_size=3),
)


@functools.cache
def good_adapter() -> Path:
    lora = LoRA(rank=2, targets=("q_proj",))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), lora.shapes(TINY)[0])
    peft_writer.write(good().parent / "adapter", TINY, lora, params, base="x")
    return good().parent / "adapter"


@fuzz(st.dictionaries(st.sampled_from(ADAPTER_KEYS), PATTERNS, min_size=1, max_size=3))
def test_keys_of_an_adapter(changes):
    settings = json.loads((good_adapter() / "adapter_config.json").read_text()) | changes
    data = json.dumps(settings).encode()
    adapter = outcome(
        lambda: peft_reader.read(directory("adapter", **{"adapter_config.json": data}), TINY)
    )
    assert adapter is None or all(0 < x.scale < math.inf for x in adapter.low_rank.values())


@fuzz(st.text(min_size=1, max_size=60), st.integers(0, 3))
def test_names_in_an_adapter(name, which):
    stored = load_file(good_adapter() / "adapter_model.safetensors")
    key = [*stored][which]
    renamed = {(name if each == key else each): value for each, value in stored.items()}
    out = directory("adapter")
    save_file(renamed, out / "adapter_model.safetensors")
    assert (outcome(lambda: peft_reader.read(out, TINY)) is None) == (name != key)


@fuzz(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_keys_of_the_config(changes):
    config(json.loads((good() / "config.json").read_text()) | changes)


@fuzz(
    st.sampled_from(
        ["linear", "yarn", "dynamic", "llama3", "longrope", "su", "default", "proportional"]
    ),
    st.dictionaries(
        st.sampled_from(ROPE),
        st.one_of(NUMBERS, VALUES, st.lists(NUMBERS, min_size=8, max_size=8)),
        max_size=6,
    ),
    st.sampled_from(["rope_scaling", "rope_parameters"]),
    NUMBERS,
)
def test_keys_of_the_scaling(kind, spec, key, length):
    data = json.loads((good() / "config.json").read_text())
    data |= {"rope_scaling": None, "rope_parameters": None}
    data |= {key: {"rope_type": kind, "factor": 4.0, **spec}, "max_position_embeddings": length}
    config(data)


@fuzz(EDITS)
def test_bytes_of_the_config(edits):
    path = directory("one", **{"config.json": edited((good() / "config.json").read_bytes(), edits)})
    outcome(lambda: (*hf.read_config(path), hf.window(path)))


def tokens(path: Path) -> None:
    """Either refused, or a tokenizer with ids in the vocabulary that is exported or refused."""
    tokenizer = outcome(lambda: load_tokenizer(path))
    if tokenizer is None:
        return
    for text in ("a b", "def f(x):\n    return 1", ""):
        ids = outcome(lambda text=text: tokenizer.encode(text))
        assert ids is None or all(0 <= i < TINY.vocab_size for i in ids)
    outcome(lambda: tokenizer.export_files(LENGTH))


@fuzz(st.sampled_from([JSON, CONFIG]), EDITS, st.booleans())
def test_bytes_of_tokenizer_json(name, edits, without_model):
    path = directory("one", **{name: edited((good() / name).read_bytes(), edits)})
    if without_model:
        (path / MODEL).unlink()
    tokens(path)


FIELDS = [
    "added_tokens",
    "normalizer",
    "post_processor",
    "decoder",
    "model",
    "pre_tokenizer",
    "padding",
    "truncation",
    "vocab",
    "merges",
    "unk_token",
    "byte_fallback",
]


@fuzz(st.sampled_from(FIELDS), VALUES, st.booleans())
def test_fields_of_tokenizer_json(key, value, without_model):
    data = json.loads((good() / JSON).read_text())
    (data["model"] if key in data["model"] else data)[key] = value
    path = directory("one", **{JSON: json.dumps(data).encode()})
    if without_model:
        (path / MODEL).unlink()
    tokens(path)


SETTINGS = [
    "bos_token",
    "eos_token",
    "pad_token",
    "add_bos_token",
    "tokenizer_class",
    "chat_template",
]


@fuzz(st.dictionaries(st.sampled_from(SETTINGS), VALUES, min_size=1), st.booleans())
def test_fields_of_tokenizer_config(changes, without_model):
    path = directory("one", **{CONFIG: json.dumps(changes).encode()})
    if without_model:
        (path / MODEL).unlink()
    tokens(path)


@fuzz(EDITS)
def test_bytes_of_a_sentencepiece_model(edits):
    tokens(directory("one", **{MODEL: edited((good() / MODEL).read_bytes(), edits)}))


def test_tokenizers_that_open_and_fail_at_some_text_are_refused():
    """An empty model, and one that lacks its own unknown token; a fuzzer found both."""
    with pytest.raises(
        ValueError, match="tokenizer.model is not a SentencePiece model; remove it if"
    ):
        load_tokenizer(directory("one", **{MODEL: b""}))
    data = json.loads((good() / JSON).read_text())
    data["model"] |= {"unk_token": "<none>", "byte_fallback": False}
    path = directory("one", **{JSON: json.dumps(data).encode()})
    (path / MODEL).unlink()
    with pytest.raises(
        ValueError, match="tokenizer.json cannot be read: Unk token `<none>` not found"
    ):
        load_tokenizer(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reader",
    [
        "header",
        "index",
        "config",
        "tokenizer_json",
        "tokenizer_config",
        "sentencepiece",
        "archive",
        "pickled",
        "params",
    ],
)
def test_fuzzing_guided_by_coverage(reader, tmp_path):
    pytest.importorskip("atheris", reason="the extra fuzz")
    script = Path(__file__).parents[1] / "support" / "fuzz_interop.py"
    options = ["-max_total_time=60", f"-artifact_prefix={tmp_path}/"]
    command = [sys.executable, script, reader, *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not any(tmp_path.iterdir()), done.stderr[-3000:]
    assert int(re.findall(r"Done (\d+) runs", done.stderr)[0]) > 1000
