"""transformers 4.57, in its own environment (`make transformers4`), as a reader and a writer."""

import functools
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

try:
    installed = version("transformers")
except PackageNotFoundError:
    installed = "none"
if not installed.startswith("4."):
    pytest.skip(
        f"transformers {installed} is not 4.57, see `make transformers4`", allow_module_level=True
    )

import torch  # noqa: E402
import transformers  # noqa: E402

from ctxext import loading  # noqa: E402
from ctxext import methods as m  # noqa: E402
from ctxext.cli.support_matrix import example, places  # noqa: E402
from ctxext.export import convert, export  # noqa: E402
from ctxext.interop import hf  # noqa: E402
from ctxext.methods import all_methods  # noqa: E402
from ctxext.model.lm import LM  # noqa: E402
from ctxext.prove import prove  # noqa: E402
from ctxext.prove.artifact import Artifact  # noqa: E402
from ctxext.prove.pytorch_readers import read as read_torch  # noqa: E402
from ctxext.prove.reader_output import ReaderInput  # noqa: E402
from ctxext.prove.rope_readers import rope_incompatibilities  # noqa: E402
from ctxext.rope import Plain, RopeScaling, Unscaled  # noqa: E402
from support.every_method import DIVISORS, ONES  # noqa: E402
from support.llamas import FACTOR, LENGTH, TINY, WINDOW, random_params, tokenizer  # noqa: E402

CLOSE = 1e-4
TOKENS = np.random.default_rng(0).integers(3, TINY.vocab_size, LENGTH)
EVERY = {name: example(method, TINY) for name, method in all_methods().items()}
EVERY = {name: method for name, method in EVERY.items() if isinstance(method, RopeScaling)}
HOW = {name: places(method, TINY)["hf"]["how"] for name, method in EVERY.items()}


def model(scaling: RopeScaling) -> LM:
    return LM(TINY, random_params(), tokenizer(), scaling=scaling, angles="float32")


def logits(path: Path, length: int = LENGTH) -> np.ndarray:
    """The logits of transformers for the first tokens, in float32, at every position."""
    positions = np.arange(length)
    reader_input = ReaderInput(TOKENS[:length], positions, positions)
    output = read_torch(Artifact.recognize(path), [reader_input])
    assert (output.name, output.version) == ("transformers", "4.57.6")
    return output.logits[0]


def assert_reads(path: Path, ours: LM) -> None:
    for length in (WINDOW, LENGTH):
        expected = np.asarray(ours.logits(TOKENS[None, :length]))[0]
        actual = logits(path, length)
        assert np.abs(expected).max() > 1, "logits too small to compare"
        np.testing.assert_allclose(actual, expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", [name for name in EVERY if HOW[name] != "refused"])
def test_an_export_is_read(name: str, tmp_path: Path) -> None:
    ours = model(EVERY[name])
    export(ours, tmp_path / "out", dtype="float32", seq_len=LENGTH)
    assert_reads(tmp_path / "out", ours)
    proof = prove(tmp_path / "out", against=ours, seq_len=LENGTH)
    assert proof["equal"]
    assert [reader["version"] for reader in proof["readers"]][1:] == ["4.57.6"]
    # A model without windows has full attention only.
    if EVERY[name] not in (Unscaled(), Plain(), m.FullAttentionOnly()):
        plain = np.asarray(model(Unscaled()).logits(TOKENS[None]))[0]
        assert np.abs(logits(tmp_path / "out") - plain).max() > 1e-2, "a scaling that does nothing"


@pytest.mark.parametrize("name", [name for name in EVERY if not EVERY[name].depends_on_length])
def test_its_generic_encoding_is_read(name: str, tmp_path: Path) -> None:
    """The frequencies of any fixed method, written as longrope with equal lists."""
    base, ours = TINY.rope_base(), model(EVERY[name])
    rope = EVERY[name].rope(base, LENGTH)
    with np.errstate(divide="ignore"):
        divisors = np.minimum(base.inv_freq / rope.inv_freq, 1e12)
    generic = model(m.Custom(tuple(divisors.tolist()), rope.attention_factor))
    export(generic, tmp_path / "out", dtype="float32", seq_len=LENGTH)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["rope_scaling"]["rope_type"] == "longrope"
    assert_reads(tmp_path / "out", ours)


ORIGINAL = {"original_max_position_embeddings": WINDOW}
WRITTEN: dict[str, tuple[dict[str, Any], RopeScaling]] = {
    "default": ({"rope_theta": 5e5}, Unscaled()),
    "linear": (
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": LENGTH},
        m.Linear(4.0),
    ),
    "dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, m.DynamicNTK(4.0)),
    "yarn": (
        {
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
            "max_position_embeddings": LENGTH,
        },
        m.Yarn(4.0),
    ),
    "llama3": (
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                **ORIGINAL,
            },
            "max_position_embeddings": 8 * WINDOW,
        },
        m.Llama3(8.0),
    ),
    "longrope": (
        {
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 4.0,
                "short_factor": list(ONES),
                "long_factor": list(DIVISORS),
            },
            **ORIGINAL,
            "max_position_embeddings": LENGTH,
        },
        m.LongRope(4.0, ONES, DIVISORS),
    ),
}


@functools.cache
def fields() -> dict[str, Any]:
    data = hf.config_json(TINY, Unscaled(), seq_len=WINDOW, dtype="float32")
    return {key: value for key, value in data.items() if "rope" not in key and "dtype" not in key}


def write(path: Path, dtype: str, changes: dict[str, Any]) -> Any:
    """A random model that transformers 4.57 writes in several shards, with its own config keys."""
    torch.manual_seed(0)
    written = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields() | changes))
    with torch.no_grad():
        for name, parameter in written.named_parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter) + float("norm" in name))
    written = written.to(getattr(torch, dtype))
    written.save_pretrained(path, max_shard_size="100KB")
    for name, data in tokenizer().export_files(LENGTH).items():
        (path / name).write_bytes(data)
    return written


@pytest.mark.parametrize("kind", WRITTEN)
def test_checkpoints_it_wrote_give_the_same_logits(kind: str, tmp_path: Path) -> None:
    changes, scaling = WRITTEN[kind]
    write(tmp_path / "m", "float32", changes)
    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    assert settings["transformers_version"] == "4.57.6"
    assert "rope_theta" in settings
    assert "rope_parameters" not in settings
    ours = loading.load(tmp_path / "m", angles="float32")
    assert ours.scaling == scaling
    assert ours.config.max_position_embeddings == WINDOW
    assert_reads(tmp_path / "m", ours)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("to", ["hf", "meta"])
def test_weights_come_back_bit_by_bit(to: str, dtype: str, tmp_path: Path) -> None:
    """From transformers 4.57 through our format or Meta's, and back to transformers."""
    written = write(tmp_path / "m", dtype, {"vocab_size": 424, **WRITTEN["yarn"][0]}).state_dict()
    assert len([*(tmp_path / "m").glob("*.safetensors")]) > 2
    convert(tmp_path / "m", tmp_path / "there", to=to)
    convert(tmp_path / "there", tmp_path / "back", max_shard_size=50_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="auto")
    state = again.state_dict()
    assert again.config.rope_scaling["factor"] == FACTOR
    assert state.keys() == written.keys()
    for name, tensor in written.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_it_does_not_know_the_keys_of_transformers_5(tmp_path: Path) -> None:
    """A known incompatibility: a scaling under rope_parameters alone does nothing here."""
    ours = model(m.Linear(4.0))
    export(ours, tmp_path / "out", dtype="float32", seq_len=LENGTH)
    path = tmp_path / "out" / "config.json"
    data = json.loads(path.read_text())
    del data["rope_scaling"]
    del data["rope_theta"]
    path.write_text(json.dumps(data))
    plain = np.asarray(model(Unscaled()).logits(TOKENS[None]))[0]
    assert np.abs(logits(tmp_path / "out") - plain).max() <= CLOSE
    proof = prove(tmp_path / "out", against=ours, seq_len=LENGTH)
    numpy, theirs = proof["readers"]
    assert numpy["equal"]
    assert not theirs["equal"]
    assert not proof["equal"]
    effects = {known["reader"]: known["effect"] for known in proof["known_incompatibilities"]}
    assert "without the scaling" in effects["transformers 4"]


def test_it_does_not_know_rope_parameters_by_layer_type() -> None:
    """A known incompatibility: it takes theta to be 10000, without a scaling."""
    entry = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    by_type = {"full_attention": entry, "sliding_attention": entry}
    config = transformers.Qwen2Config(rope_parameters=by_type)
    assert config.rope_theta == 10000.0
    assert config.rope_scaling is None
    (effect,) = [
        known.effect
        for known in rope_incompatibilities(config.to_dict())
        if known.reader == "transformers 4"
    ]
    assert effect == "does not know rope_parameters: it takes theta to be 10000, without a scaling"
