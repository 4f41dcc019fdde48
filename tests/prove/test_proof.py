"""The proof: a valid export passes, and every planted mistake is noticed."""

import ast
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file

from ctxext.attention import Causal
from ctxext.export import export
from ctxext.interop.pth import open_archive
from ctxext.methods.abf import ABF
from ctxext.methods.cope import CoPE, HardClip
from ctxext.methods.custom import Custom
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import LongRope
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.p_rope import PRope
from ctxext.methods.resonance import Resonance
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.lm import LM
from ctxext.progress import heard_by, parts_heard_by
from ctxext.prove import compare, describe, prove, pytorch_readers
from ctxext.prove import proof as module
from ctxext.prove.reference import hf as hf_reference
from ctxext.rope import Unscaled, scaling_name
from support.llamas import LENGTH, TINY, WINDOW, random_params, tokenizer


def model(scaling=None, config=TINY) -> LM:
    return LM(config, random_params(config), tokenizer(), scaling=scaling or Yarn(4.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export(model(), tmp_path_factory.mktemp("export") / "m", card={"method": "yarn"})


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "m"))


@pytest.fixture
def no_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


SCALINGS = [
    Unscaled(),
    Linear(4.0),
    NTK(4.0),
    DynamicNTK(4.0),
    Llama3(4.0),
    Yarn(4.0, attention_factor=1.0),
    Yarn(1.3),
    Custom((1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 1e12), 1.2),
    ABF(5e5),
    PRope(1.0, 0.75),
    LongRope(4.0, (1.0,) * 8, (1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0)),
]


@pytest.mark.check
@pytest.mark.parametrize(
    "scaling",
    [
        CoPE(4, inner=Yarn(4.0)),
        HardClip(3, inner=Resonance(inner=NTK(4.0))),
        CoPE(4, inner=LongRope(4.0, (1.0,) * 8, (1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0))),
    ],
    ids=scaling_name,
)
def test_a_scaling_that_wraps_another_is_proven_by_transformers(tmp_path, scaling):
    pytest.importorskip("torch")
    lm = model(scaling)
    out = export(lm, tmp_path / "m", dtype="float32")
    proof = prove(out, against=lm)
    assert proof["equal"]
    readers = {reader["reader"]: reader for reader in proof["readers"]}
    for reader in ("transformers", "numpy"):
        assert max(readers[reader]["logits"]) < 1e-5
    assert not prove(out, against=model(Yarn(4.0)))["equal"], "the wrapper makes a difference"


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: type(s).__name__)
def test_numpy_alone_proves_every_scaling(tmp_path, scaling, no_transformers):
    lm = model(scaling)
    proof = prove(export(lm, tmp_path / "m", dtype="float32"), against=lm)
    assert proof["equal"]
    assert [r["reader"] for r in proof["readers"]] == ["numpy"]
    assert proof["readers_not_run"] == {"transformers": "torch is not installed"}
    assert max(proof["readers"][0]["logits"]) < 1e-5
    assert max(proof["readers"][0]["tables"]) < 1e-6
    text = describe(proof)
    assert "not read by transformers: torch is not installed" in text
    (facts,) = [line for line in text.splitlines() if "greedy continuation" in line]
    is_equal = proof["readers"][0]["attention_factor"] == 0
    assert ("attention factor equal" in facts) is is_equal
    assert "0.0e+00" not in facts


@pytest.mark.usefixtures("readers")
def test_both_readers_agree_and_the_proof_is_written(copy):
    told: list[tuple[str, float | None]] = [("", None)]
    with (
        parts_heard_by(lambda part: told.append((part, None))),
        heard_by(lambda share: told.append((told[-1][0], share))),
    ):
        proof = prove(copy, against=model())
    # Two texts each, which transformers reads twice at least; the layers of each are told.
    for name, passes in (("numpy", 2), ("transformers", 4)):
        shares = [x for part, x in told if part == f"reading with {name}" and x is not None]
        layers = model().config.num_hidden_layers
        expected = {n / (passes * layers) for n in range(1, passes * layers + 1)}
        assert sorted(set(shares)) == pytest.approx(sorted(expected))
    assert proof["equal"]
    assert proof["weights_that_differ"] == []
    assert proof["dtype"] == "bfloat16"
    assert proof["positions"] == [0, WINDOW - 1, WINDOW, LENGTH - 1]
    assert proof["tokens_read"] == LENGTH
    numpy, transformers = proof["readers"]
    assert transformers["token_ids_equal"]
    assert max(transformers["logits"]) <= 2e-5
    assert len(transformers["logits_exact_angles"]) == 4
    assert json.loads((copy / "proof.json").read_text()) == proof
    card = (copy / "README.md").read_text()
    assert "EQUAL to the model that was exported, read by numpy" in card
    assert "Not compared" not in card
    assert f"{max(transformers['logits']):.1e}" in card
    # A second proof replaces the first.
    again = prove(copy, against=model())
    assert again == proof
    assert (copy / "README.md").read_text() == card


def test_without_a_model_the_export_is_compared_with_our_own_reading(copy, no_transformers):
    proof = prove(copy)
    assert proof["equal"]
    assert "EQUAL to our own reading of the export" in describe(proof)


def test_a_card_that_we_did_not_write_is_left_alone(copy, no_transformers):
    (copy / "README.md").write_text("mine")
    prove(copy)
    assert (copy / "README.md").read_text() == "mine"
    assert (copy / "proof.json").exists()


def test_large_models_are_read_at_few_positions(copy, no_transformers, monkeypatch):
    monkeypatch.setattr(module, "EVERY_POSITION", 0)
    proof = prove(copy)
    assert proof["equal"]
    assert proof["tokens_read"] < 80
    assert proof["positions"][-1] == LENGTH - 1


def _config(**changes):
    def edit(out: Path):
        data = json.loads((out / "config.json").read_text())
        for key, value in changes.items():
            for form in ("rope_scaling", "rope_parameters"):
                data[form][key] = value
        (out / "config.json").write_text(json.dumps(data))

    return edit


def _weights(out: Path):
    stored = load_file(out / "model.safetensors")
    value = stored["model.layers.1.mlp.up_proj.weight"].copy()
    value[5, 7] += np.asarray(0.01, value.dtype)
    save_file(stored | {"model.layers.1.mlp.up_proj.weight": value}, out / "model.safetensors")


@pytest.mark.parametrize(
    "corrupt, broken",
    [
        (_config(attention_factor=1.0), "attention_factor"),
        (_config(factor=4.01), "inv_freq"),
        (_config(beta_slow=0.1), "inv_freq"),
        (_weights, "logits"),
    ],
    ids=["m", "factor", "beta", "weight"],
)
def test_a_wrong_export_is_not_equal(copy, no_transformers, corrupt, broken):
    corrupt(copy)
    proof = prove(copy, against=model())
    assert not proof["equal"]
    assert "NOT EQUAL" in describe(proof)
    if broken == "logits":
        assert proof["weights_that_differ"] == ["model.layers.1.mlp.up_proj.weight"]
    else:
        assert proof["readers"][0][broken] > compare.FREQUENCY_TOLERANCE
        assert max(proof["readers"][0]["logits"]) > 1e-3


@pytest.mark.usefixtures("readers")
def test_a_wrong_tokenizer_is_not_equal(copy):
    data = json.loads((copy / "tokenizer.json").read_text())
    data["model"]["merges"] = data["model"]["merges"][10:]
    (copy / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="tokenizer.model and tokenizer.json are different"):
        prove(copy, against=model())
    (copy / "tokenizer.model").unlink()
    proof = prove(copy, against=model())
    assert not proof["equal"]
    assert "TOKEN IDS DIFFER" in describe(proof)


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_an_export_of_others_in_the_files_of_torch(prefix, copy):
    stored = safetensors.torch.load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    renamed = {prefix + name: value for name, value in stored.items()}
    torch.save(renamed, copy / "pytorch_model.bin")
    proof = prove(copy, against=model())
    readers = {reader["reader"]: reader["equal"] for reader in proof["readers"]}
    # transformers takes random numbers in place of tensors with a prefix.
    assert readers == {"numpy": True, "transformers": not prefix}
    assert not proof["weights_that_differ"]


def test_forms_that_disagree_are_refused_by_the_independent_reader(copy):
    data = json.loads((copy / "config.json").read_text())
    data["rope_parameters"]["factor"] = 2.0
    (copy / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="give different frequencies"):
        hf_reference.HFReference(copy, open_archive=open_archive).rope(LENGTH)


def test_a_forward_pass_is_run_until_it_repeats_itself():
    results = iter([1.0, 2.0, 3.0, 3.0, 4.0])
    assert pytorch_readers.repeated(lambda: np.array([next(results)])) == 3.0


def test_values_that_are_not_finite_never_pass():
    with pytest.raises(ValueError, match="not finite"):
        compare.errors(np.array([[np.nan]]), np.zeros((1, 1)))


def test_reference_readers_are_independent():
    """Reference readers import nothing of the model, the rope or the loaders that they check."""
    for path in Path(hf_reference.__file__).parent.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        own = {name for name in names if name.startswith("ctxext.prove.reference")}
        assert names - own <= {
            "abc",
            "collections.abc",
            "dataclasses",
            "functools",
            "heapq",
            "importlib.metadata",
            "json",
            "math",
            "pathlib",
            "re",
            "struct",
            "typing",
            "numpy",
            "ml_dtypes",
            "gguf",  # llama.cpp's own, for the numbers of quantized types
            "safetensors",
            "sentencepiece",
            "tokenizers",
        }


def test_exports_that_cannot_be_written_are_refused(tmp_path):
    lm = model()
    with pytest.raises(ValueError, match="no format 'onnx'; known: hf, meta, gguf"):
        export(lm, tmp_path / "m", to="onnx")
    with pytest.raises(
        ValueError, match="SelfExtend is a way to run a model, for which the hf format has no field"
    ):
        export(lm.with_method(SelfExtend(group_size=4, neighbor_window=16)), tmp_path / "m")
    with pytest.raises(ValueError, match="dtype 'float64' is not known"):
        export(lm, tmp_path / "m", dtype="float64")
    assert lm.attention == Causal()
    assert not any(tmp_path.iterdir())
