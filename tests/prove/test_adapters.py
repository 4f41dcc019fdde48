"""The proof of an adapter, on the base that it was trained for."""

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ctxext import loading
from ctxext.cli.main import main
from ctxext.export import export_adapter
from ctxext.interop import peft_writer
from ctxext.methods import Linear, Yarn
from ctxext.model.trainable import LINEARS, LoRA
from ctxext.pipeline import train_only
from ctxext.prove import describe, prove
from support.hf_files import write_hf
from support.llamas import LENGTH, TINY, WINDOW, random_params, tokenizer
from support.tiny_train import tiny_experiment, write_texts

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
SCALING = Yarn(LENGTH / WINDOW)


def write_base(path: Path, config=TINY, scaling=SCALING, seed: int = 0) -> Path:
    write_hf(path, config, random_params(config, seed=seed), scaling, tokenizer(), dtype="bfloat16")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A directory with a `base`, a LoRA `run` on it, and the run's `adapter`."""
    folder = tmp_path_factory.mktemp("trained")
    write_base(folder / "base")
    experiment = dataclasses.replace(
        tiny_experiment(
            write_texts(folder / "texts"), steps=3, checkpoint_every=2, dtype="bfloat16"
        ),
        init=str(folder / "base"),
        model=None,
        rope=None,
        trainable=LoRA(rank=4, alpha=8.0, modules_to_save=("norm",)),
    )
    train_only(experiment, folder / "run", track=())
    export_adapter(folder / "run", folder / "adapter")
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("readers")
def test_an_adapter_is_proven_on_the_base_that_it_names(trained, copy, capsys):
    assert main(["prove", str(copy)]) == 0
    text = capsys.readouterr().out
    proof = json.loads((copy / "proof.json").read_text())
    assert proof["equal"]
    assert proof["base_checked"]
    assert proof["base"] == str((trained / "base").resolve())
    assert proof["positions"] == [0, WINDOW - 1, WINDOW, LENGTH - 1]
    assert proof["tokens_read"] == LENGTH
    ours, theirs = proof["readers"]
    assert (ours["reader"], theirs["reader"]) == ("numpy", "peft")
    assert theirs["token_ids_equal"]
    assert max(ours["logits"]) < 1e-5
    assert ours["greedy"] == theirs["greedy"] == 0
    assert "EQUAL to our own reading of the adapter, read by numpy" in text
    assert " on transformers " in text
    assert text.count("greedy continuation of 64 tokens equal") == 2
    assert "parameters are those that it was trained on" in text


@pytest.mark.usefixtures("readers")
def test_the_greedy_continuation_is_the_one_that_peft_generates(trained):
    import torch
    import transformers
    from peft import PeftModel

    from ctxext.parallel.mesh import ONE_DEVICE
    from ctxext.prove.artifact import Artifact
    from ctxext.prove.reader_output import continuation_input

    lm = Artifact.recognize(trained / "adapter").open(ONE_DEVICE)
    random_tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, LENGTH)
    ours = continuation_input(lm, random_tokens, LENGTH)
    stock = transformers.AutoModelForCausalLM.from_pretrained(trained / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(stock, trained / "adapter").eval()
    prompt = torch.tensor(ours.tokens[None, :16])
    options = {
        "max_new_tokens": 64,
        "do_sample": False,
        "eos_token_id": None,
        "temperature": None,
        "top_p": None,
    }
    tokens = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    np.testing.assert_array_equal(tokens[0].numpy(), ours.tokens)


def test_the_reference_alone_compares_it_with_the_run(trained, copy, no_torch, capsys):
    assert main(["prove", str(copy), "--against", str(trained / "run"), "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["equal"]
    assert proof["weights_that_differ"] == []
    assert proof["against"] == f"the run {trained / 'run'} after 3 steps"
    assert proof["readers_not_run"] == {"peft": "torch is not installed"}
    # `early` is the adapter after two steps, `copy` after three.
    run = trained / "run"
    early = copy.parent / "early"
    assert main(f"export {run} --to peft --out {early} --checkpoint 2".split()) == 0
    assert main(f"prove {early} --against {run} --checkpoint 2".split()) == 0
    assert main(f"prove {copy} --against {run} --checkpoint 2".split()) == 1
    file = copy / "adapter_model.safetensors"
    name = "model.layers.1.self_attn.v_proj"
    tensors = load_file(file)
    tensors[f"base_model.model.{name}.lora_A.weight"][0, 0] += 0.1
    save_file(tensors, file)
    proof = prove(copy, against=trained / "run")
    assert not proof["equal"]
    assert proof["weights_that_differ"] == [f"{name}.weight"]
    assert "NOT EQUAL" in describe(proof)
    # The readers agree on the changed file, but it is recorded that the run is another model.
    alone = prove(copy)
    assert not alone["equal"]
    assert all(reader["equal"] for reader in alone["readers"])
    assert "proof.json is kept: NOT EQUAL to the run" in describe(alone)
    (copy / "proof.json").unlink()
    assert prove(copy)["equal"]


def change_config(adapter: Path, **changes) -> None:
    """Set keys of adapter_config.json."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_settings_that_do_not_show_in_the_weights_are_named(trained, copy, no_torch):
    """PEFT computes the same with each of them, so that the verdict stays."""
    planted = {
        "lora_dropout": 0.5,
        "fan_in_fan_out": True,
        "inference_mode": False,
        "revision": "v2",
        "modules_to_save": None,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "c_attn"],
        "alpha_pattern": {"c_attn": 2},
    }
    spelled_in_another_way = {
        "lora_alpha": 8.0,
        "rank_pattern": {},
        "peft_version": "9",
    }
    change_config(copy, **planted, **spelled_in_another_way)
    (copy / "tokenizer_config.json").write_text('{"bos_token": "x"}')
    proof = prove(copy, against=trained / "run")
    assert proof["equal"]
    named = {noted.split(" in adapter_config")[0] for noted in proof["settings_noted"][1:]}
    assert named == planted.keys()
    text = describe(proof)
    without_effect = "ANOTHER SETTING, without effect on what is computed here"
    assert f"{without_effect}: lora_dropout in adapter_config.json is 0.5, not 0.0" in text
    assert f"{without_effect}: tokenizer_config.json next to the adapter" in text


def test_the_setting_that_changes_the_weights_is_named_with_them(trained, copy, no_torch):
    change_config(copy, use_rslora=True)
    proof = prove(copy, against=trained / "run")
    assert not proof["equal"]
    assert len(proof["weights_that_differ"]) == 8
    assert "  ANOTHER SETTING: use_rslora in adapter_config.json is True, not False" in describe(
        proof
    )


def test_what_another_reader_would_not_do_is_not_equal_by_itself(copy, no_torch):
    """Without the run, and where our own readers agree with each other."""
    change_config(copy, task_type="SEQ_CLS")
    file = copy / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[f"module.{name}"] = tensors.pop(name)
    save_file(tensors, file)
    config = copy / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"rms_norm_eps": 1e-6, "bos_token_id": 7}))
    proof = prove(copy)
    assert all(reader["equal"] for reader in proof["readers"])
    assert not proof["equal"]
    expected = (
        "PEFT passes over module.base_model",
        "task_type in adapter_config.json is 'SEQ_CLS'",
    )
    fields = ("rms_norm_eps in config.json of the base is", "bos_token_id in config.json of the")
    differences = proof["settings_that_differ"]
    assert len(differences) == 4
    for beginning in (*expected, *fields):
        assert any(difference.startswith(beginning) for difference in differences)


@pytest.mark.check
@pytest.mark.usefixtures("readers")
def test_an_adapter_that_peft_cannot_load_is_named(copy):
    change_config(copy, task_type="CAUSAL_XX")
    with pytest.raises(ValueError, match=r"PEFT cannot load .*adapter: ValueError: Invalid task"):
        prove(copy)


def test_an_export_with_a_merged_adapter_is_proven_with_it(trained, tmp_path, no_torch, capsys):
    base, adapter = trained / "base", trained / "adapter"
    out = tmp_path / "merged"
    options = ["--adapter", str(adapter), "--no-bos"]
    assert main(["export", str(base), *options, "--out", str(out)]) == 0
    command = capsys.readouterr().out.partition("check it with: ctxext ")[2]
    assert shlex.split(command)[2:] == ["--against", str(base), *options]
    assert main(shlex.split(command)) == 0
    verdict = f"EQUAL to the checkpoint {base} with the adapter {adapter} merged, read by numpy"
    assert f"proof: {verdict}" in capsys.readouterr().out
    assert json.loads((out / "proof.json").read_text())["weights_that_differ_by_rounding"] == []
    # Without it the weights are not those of the base, and the output says what it may be.
    assert main(["prove", str(out), "--against", str(base), "--no-bos"]) == 1
    text = capsys.readouterr().out
    assert "NOT EQUAL to the checkpoint" in text
    assert "if an adapter was merged before the export, name it with --adapter" in text
    # A weight that the adapter changes, and one that it does not, are still compared.
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        tensors = load_file(out / "model.safetensors")
        before = tensors[name][0, 0]
        tensors[name][0, 0] = before * 1.02
        save_file(tensors, out / "model.safetensors")
        proof = prove(out, against=base, adapter=adapter)
        assert proof["weights_that_differ"] == [name]
        tensors[name][0, 0] = before
        save_file(tensors, out / "model.safetensors")


@pytest.mark.usefixtures("readers")
def test_an_adapter_that_peft_merged_is_equal_up_to_rounding(trained, tmp_path, monkeypatch):
    import torch
    import transformers
    from peft import PeftModel

    base, adapter = trained / "base", trained / "adapter"
    stock = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(stock, adapter).merge_and_unload()
    out = Path(shutil.copytree(base, tmp_path / "merged"))
    merged.save_pretrained(out)
    monkeypatch.setitem(sys.modules, "torch", None)
    proof = prove(out, against=base, adapter=adapter)
    assert proof["weights_that_differ"] == []
    assert proof["equal"]
    assert all("proj" in name for name in proof["weights_that_differ_by_rounding"])
    without = prove(out, against=base)
    assert not without["equal"]
    assert len(without["weights_that_differ"]) > 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prove {base} --adapter {adapter}", "--adapter was merged into the model that an export"),
        ("prove {adapter} --against {base} --adapter {adapter}", "is itself a PEFT adapter; prove"),
    ],
)
def test_an_adapter_belongs_to_the_model_that_is_compared(words, message, trained, capsys):
    names = {"base": trained / "base", "adapter": trained / "adapter"}
    assert main(words.format(**names).split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize(
    "lora",
    [
        LoRA(rank=3, alpha=5.0, targets=LINEARS, rslora=True),
        LoRA(rank=2, modules_to_save=("norm", "embed_tokens", "lm_head")),
    ],
)
def test_both_readers_merge_every_kind(trained, tmp_path, lora):
    rng = np.random.default_rng(0)
    # No larger than the weights: otherwise attention to a single token hangs on the last bit.
    params = jax.tree.map(
        lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32), lora.shapes(TINY)[0]
    )
    peft_writer.write(tmp_path / "adapter", TINY, lora, params, base=str(trained / "base"))
    proof = prove(tmp_path / "adapter")
    assert proof["equal"]
    assert [reader["reader"] for reader in proof["readers"]] == ["numpy", "peft"]
    assert not proof["base_checked"]
    assert "NOT CHECKED to be the base" in describe(proof)
    tokens = np.arange(20)[None]
    plain = loading.load(trained / "base").logits(tokens)
    merged = loading.load(trained / "base", adapter=tmp_path / "adapter").logits(tokens)
    assert np.abs(np.asarray(plain) - np.asarray(merged)).max() > 0.1


def test_a_reader_with_another_scale_is_noticed(copy, no_torch, monkeypatch):
    from ctxext.prove.reference import hf as hf_reference

    changed = hf_reference.Adapter.changed

    def changed_less(self, name, x):
        return x + 0.9 * (changed(self, name, x) - x)

    monkeypatch.setattr(hf_reference.Adapter, "changed", changed_less)
    proof = prove(copy)
    assert not proof["equal"]
    assert max(proof["readers"][0]["logits"]) > 1e-4


def test_a_run_whose_base_has_moved_is_named(trained, tmp_path, capsys):
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    settings = json.loads((run / "config.json").read_text())
    settings["init"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(settings))
    words = ["export", str(run), "--to", "peft", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"the base of {run} cannot be opened: {tmp_path / 'gone'} does not exist" in error
    assert error.endswith("; name another place with --base\n")
    assert main([*words, "--base", str(trained / "base")]) == 0


def test_an_adapter_that_is_merged_into_other_parameters_says_so(trained, copy, tmp_path, caplog):
    """Its file records a checksum, so that a name that fits does not hide it."""
    other = write_base(tmp_path / "base", seed=1)
    loading.load(trained / "base", adapter=copy)
    assert not caplog.text
    loading.load(other, adapter=copy)
    assert f"{other} does not hold the parameters that the adapter {copy} was" in caplog.text
    (copy / "base.json").write_text('{"dtype": "O"}')
    with pytest.raises(ValueError, match="base.json must hold the dtype .float32 or bfloat16. and"):
        loading.load(trained / "base", adapter=copy)


OTHER_BASES = {
    "of other parameters": (
        {"seed": 1},
        "does not hold the parameters that .*adapter was trained on",
    ),
    "of other frequencies": (
        {"scaling": Linear(LENGTH / WINDOW)},
        "has other frequencies than .*ctxext export BASE",
    ),
    "of another shape": (
        {"config": dataclasses.replace(TINY, num_hidden_layers=3)},
        "was trained on a base with num_hidden_layers 2, .* has 3",
    ),
    "of another window": (
        {"config": dataclasses.replace(TINY, max_position_embeddings=2 * WINDOW)},
        f"with max_position_embeddings {WINDOW}, .* has {2 * WINDOW}",
    ),
}


@pytest.mark.parametrize("name", OTHER_BASES)
def test_a_base_that_does_not_fit_is_refused(name, copy, tmp_path):
    changes, message = OTHER_BASES[name]
    base = write_base(tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=message):
        prove(copy, against=base)
    assert not (copy / "proof.json").exists()


def test_a_base_that_cannot_be_opened_is_named(trained, copy, tmp_path, no_torch):
    config = copy / "adapter_config.json"
    missing = tmp_path / "gone"
    for base, message in (
        (
            str(missing),
            "the base of .*adapter cannot be opened: .*gone does not exist.*--against BASE",
        ),
        (str(tmp_path), "config.json does not exist"),
        (None, "names no base; give one with --against BASE"),
        (3, "names no base; give one with --against BASE"),
    ):
        settings = json.loads(config.read_text())
        settings["base_model_name_or_path"] = base
        config.write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=message):
            prove(copy)
    # A base that has moved can be named.
    assert prove(copy, against=trained / "base")["equal"]
    with pytest.raises(ValueError, match="is one of a run; name that with --against RUN"):
        prove(copy, against=trained / "base", checkpoint="best")
    with pytest.raises(
        ValueError, match="is a PEFT adapter: open its base, and give this as --adapter"
    ):
        loading.load(copy)
