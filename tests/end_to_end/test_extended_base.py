"""A base that was extended before, like Llama 3.1: 64 tokens of pre-training, 1,024 declared.

What it computes and declares as it is comes from transformers.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import ctxext
from ctxext import report
from ctxext.cli.main import main
from ctxext.evals.record import read_records
from ctxext.export import export
from ctxext.methods import Llama3, Plain, Unscaled, Yarn
from ctxext.report.analysis.records import task_results
from ctxext.report.analysis.runs import read_run
from ctxext.report.analysis.study import Study
from support.llamas import TINY, torch_llama

WINDOW = 64
DECLARED = 1024
LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": WINDOW,
}
EXPERIMENT = """
from ctxext.data import Stdlib
from ctxext.evals import Retrieval
from ctxext.experiment import Experiment, Export, Train
from ctxext.optim import Optim
from ctxext.rope import Unscaled
from ctxext.tasks import Passkey

experiment = Experiment(
    name="extended",
    data=Stdlib("train"),
    optim=Optim(learning_rate=1e-3),
    train=Train(steps=1, seq_len=128, batch_size=2),
    evals=(Retrieval(seq_lens=(64, 128), depths=(0.5,), n=1, task=Passkey(wording="code")),),
    zero_shot=(Unscaled(),),
    export=Export(dtype="float32"),
)

def sweep():
    yield experiment
"""
# What `--factor 2` would make of it, and the factor that doubles what it declares.
REFUSAL = ("128 tokens", "1,024 by Llama3", "32 doubles what is declared", "--allow-shorter")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("extended") / "base"
    torch_llama(path, LLAMA31, max_position_embeddings=DECLARED)
    return path


@pytest.fixture(scope="module")
def experiment(base: Path) -> Path:
    file = base.parent / "experiment.py"
    file.write_text(EXPERIMENT)
    return file


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, TINY.vocab_size, (1, 150))


def their_logits(path: Path, **config) -> np.ndarray:
    """Of transformers, with some keys of config.json changed."""
    settings = transformers.AutoConfig.from_pretrained(path, **config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, config=settings, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor(tokens()), attention_mask=torch.ones(1, 150)).logits.numpy()


def logits(path: Path, *methods) -> np.ndarray:
    lm = ctxext.load(path, method=methods, angles="float32")
    return np.asarray(lm.logits(tokens()))


def test_none_is_the_checkpoint_as_it_is_and_plain_is_not(base):
    """transformers' logits as the files are, and without their rope_scaling."""
    as_it_is = their_logits(base)
    plain = their_logits(base, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    scale = np.abs(as_it_is).max()
    assert np.abs(as_it_is - plain).max() > 1e-2 * scale
    for methods in ((), (Unscaled(),), (Llama3(8.0),)):
        np.testing.assert_allclose(logits(base, *methods), as_it_is, atol=1e-4 * scale)
    np.testing.assert_allclose(logits(base, Plain()), plain, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "command",
    [
        "eval {base} {method} --evals ppl --seq-len 64",
        "export {base} {method} --out {out}",
        "export {base} {method} --to gguf --out {out}",
        "generate {base} {method} --prompt x",
        "prove {copy} --against {base} {method}",
        "rope {method} --init {base}",
        "run {file} --init {base} {method} --run-dir {out}",
        "run {file} --init {base} {method} --dry-run",
        "train {file} --init {base} {method} --run-dir {out}",
        "plan {file} --init {base} {method}",
        "sweep {file} --init {base} {method} --out {out} --dry-run",
    ],
)
def test_a_factor_that_shrinks_it_is_refused(command, base, experiment, tmp_path, capsys):
    out = tmp_path / "out"
    copy = shutil.copytree(base, tmp_path / "copy")
    method = "--method yarn --factor 2"
    words = command.format(base=base, copy=copy, file=experiment, out=out, method=method)
    capsys.readouterr()
    assert main(words.split()) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("ctxext: Yarn with factor 2 makes")
    for part in REFUSAL:
        assert part in line
    assert not out.exists()


def test_it_may_be_shortened_if_asked_for_and_the_factor_counts_aloud(base, tmp_path, capsys):
    for factor, length, flags in ((2, 128, ["--allow-shorter"]), (32, 2048, [])):
        out = tmp_path / f"x{factor}"
        method = ["--method", "yarn", "--factor", str(factor), *flags]
        capsys.readouterr()
        assert main(["export", str(base), *method, "--out", str(out)]) == 0
        config = transformers.AutoConfig.from_pretrained(out)
        assert config.max_position_embeddings == length
        assert config.rope_parameters["factor"] == factor
        assert config.rope_parameters["original_max_position_embeddings"] == WINDOW
        assert main(["generate", str(base), *method, "--prompt", "x", "--max-new-tokens", "1"]) == 0
        said = f"Yarn with factor {factor}: {length:,} tokens, {factor} x the 64 of pre-training; "
        declared = "as it is, the checkpoint declares 1,024 tokens by Llama3 with factor 8"
        assert f"context: {said}{declared}\n" in capsys.readouterr().err
    refused = ["export", str(base), "--out", str(tmp_path / "short"), "--seq-len", "512"]
    assert main(refused) == 2
    assert "would declare 512 tokens" in capsys.readouterr().err
    assert main([*refused, "--allow-shorter"]) == 0


@pytest.mark.parametrize("method", [[], ["--method", "none"]])
def test_an_export_as_it_is_declares_what_it_declared(method, base, tmp_path):
    assert main(["export", str(base), *method, "--out", str(tmp_path / "out")]) == 0
    old, new = (transformers.AutoConfig.from_pretrained(x) for x in (base, tmp_path / "out"))
    assert new.max_position_embeddings == old.max_position_embeddings == DECLARED
    assert new.rope_parameters == old.rope_parameters
    np.testing.assert_array_equal(their_logits(tmp_path / "out"), their_logits(base))
    lm = ctxext.load(base)
    ctxext_export = tmp_path / "again"
    export(lm, ctxext_export, dtype="float32")
    assert json.loads((ctxext_export / "config.json").read_text()) == json.loads(
        (tmp_path / "out" / "config.json").read_text()
    )


def test_evaluated_as_it_is_it_is_the_base_of_comparisons(base, tmp_path):
    """`none` and no method are one variant, whose accuracy in its window is the baseline."""
    shape = ["--evals", "passkey", "--wording", "code", "--seq-len", "64", "128"]
    out = [*shape, "--out", str(tmp_path)]
    for method in ([], ["--method", "none"], ["--method", "yarn", "--factor", "32"]):
        assert main(["eval", str(base), *method, *out]) == 0
    assert main(["eval", str(base), "--method", "plain", *out]) == 0
    records = read_records(tmp_path / "records.jsonl")
    models = list(dict.fromkeys(record.model for record in records))
    assert [model.rope for model in models] == ["llama3(factor=8)", "yarn(factor=32)", "plain"]
    assert [model.is_plain for model in models] == [True, False, False]
    assert [model.method for model in models] == ["none", "yarn(factor=32)", "plain"]
    assert models[0].label == "none (llama3(factor=8) as the base is)"
    (task,) = task_results(records)
    (baseline,) = Study(task).baselines
    assert baseline.variant.model == models[0]
    assert "none (llama3(factor=8) as the base is)" in report.tables(records)


@pytest.mark.check
def test_a_run_without_a_method_keeps_what_it_declares(base, experiment, tmp_path, capsys):
    """Trained at 128 tokens, it still declares 1,024; resumed under other frequencies, it stops."""
    copied = tmp_path / "base"
    torch_llama(copied, LLAMA31, max_position_embeddings=DECLARED)
    run = tmp_path / "run"
    command = ["run", str(experiment), "--init", str(copied), "--run-dir", str(run), "--no-wandb"]
    assert main(command) == 0
    config = transformers.AutoConfig.from_pretrained(run / "export")
    assert config.max_position_embeddings == DECLARED
    assert config.rope_parameters == transformers.AutoConfig.from_pretrained(base).rope_parameters
    models = dict.fromkeys(record.model for record in read_records(run / "records.jsonl"))
    assert [(model.method, model.steps) for model in models] == [("none", 0), ("none", 1)]
    data = read_run(run)
    assert data.method == "none"
    (curve,) = data.spectra
    assert curve.method == "none"
    rope = Llama3(8.0).rope(dataclasses.replace(TINY).rope_base(), 128)
    np.testing.assert_allclose(curve.wavelengths, 2 * np.pi / rope.inv_freq)

    lm = ctxext.load(run)
    assert lm.context.declared == DECLARED
    with pytest.raises(ValueError, match="64 of pre-training, but as it is .* declares 1,024"):
        lm.with_method(Yarn(4.0))
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    exported = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert exported.max_position_embeddings == DECLARED

    settings = json.loads((copied / "config.json").read_text())
    settings["rope_parameters"]["factor"] = 16.0
    (copied / "config.json").write_text(json.dumps(settings))
    capsys.readouterr()
    assert main([*command, "--train.steps", "2"]) == 2
    assert "started with other frequencies: frequencies.scaling.factor" in capsys.readouterr().err


def test_the_recipe_for_any_checkpoint_doubles_what_it_declares(base, capsys):
    recipe = Path(__file__).parents[2] / "experiments" / "extend.py"
    assert main(["run", str(recipe), "--init", str(base), "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["rope"]["factor"] == 32
    assert config["train"]["seq_len"] == 2 * DECLARED


def test_frequencies_of_a_checkpoint_by_name(base, capsys):
    """`none` is the checkpoint of --init as it is; without one, plain RoPE over the numbers given.

    Frequencies of transformers, from the files.
    """
    capsys.readouterr()
    assert main(["rope", "none", "plain", "--init", str(base), "--json"]) == 0
    none, plain = json.loads(capsys.readouterr().out)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    np.testing.assert_allclose(none["inv_freq"], model.model.rotary_emb.inv_freq, rtol=1e-6)
    assert none["hf_config"]["max_position_embeddings"] == DECLARED
    np.testing.assert_allclose(plain["inv_freq"], TINY.rope_base().inv_freq, rtol=1e-12)
    assert main(["rope", "none", "--init", str(base), "--theta", "1e4"]) == 2
    assert "leave out --head-dim, --theta and --original" in capsys.readouterr().err
