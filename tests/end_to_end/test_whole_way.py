"""A checkpoint by transformers from end to end: import, eval, run, export, proof and reload."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

import ctxext
from ctxext.cli.main import main
from ctxext.experiment import load_experiment
from ctxext.methods import Linear
from support.llamas import TINY, torch_llama

EXPERIMENT = """
from ctxext import tasks
from ctxext.data import Mix, Stdlib, Synthetic
from ctxext.evals import Retrieval
from ctxext.experiment import Experiment, Export, Train
from ctxext.methods import Linear, Yarn
from ctxext.optim import Optim

experiment = Experiment(
    name="whole-way",
    rope=Yarn(factor=2.0),
    data=Mix(((0.5, Stdlib("train")), (0.5, Synthetic(tasks.Passkey())))),
    optim=Optim(learning_rate=1e-3),
    train=Train(steps=2, seq_len=128, batch_size=2, remat="full"),
    evals=(Retrieval(seq_lens=(128,), depths=(0.5,), n=2),),
    zero_shot=(Yarn(factor=2.0),),
    baselines=(Linear(2.0),),
    export=Export(dtype="float32"),
)
"""


def test_from_transformers_and_back(tmp_path: Path, capsys) -> None:
    def ctxext_command(arguments: str) -> int:
        return main(arguments.split())

    hub = tmp_path / "hub"
    base = tmp_path / "base"
    file = tmp_path / "experiment.py"
    run = tmp_path / "run"
    export = run / "export"
    # Like Llama 2 7B and 13B, with as many key heads as query heads.
    torch_llama(hub, num_key_value_heads=TINY.num_attention_heads)
    file.write_text(EXPERIMENT)
    assert ctxext_command(f"import {hub} --out {base} --dtype float32") == 0
    evals = f"--evals passkey --seq-len 128 --out {tmp_path / 'records'}"
    assert ctxext_command(f"eval {base} --method pi --factor 2 {evals}") == 0
    capsys.readouterr()
    assert ctxext_command(f"run {file} --init {base} --run-dir {run} --no-wandb --json") == 0
    proof = json.loads(capsys.readouterr().out)["proof"]
    assert proof["equal"]
    assert {reader["reader"] for reader in proof["readers"]} == {"numpy", "transformers"}
    assert proof["positions"] == [0, 63, 64, 127]
    # transformers computes the trained model, and neither the base nor the trained model without
    # its scaling.
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (1, 128))
    model = transformers.AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    mask = torch.ones(1, 128, dtype=torch.long)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), attention_mask=mask).logits.numpy()
    trained = ctxext.load(run, angles="float32")
    scale = np.abs(theirs).max()
    assert np.abs(np.asarray(trained.logits(tokens)) - theirs).max() <= 2e-5 * scale
    for other in (ctxext.load(base), trained.with_method(ctxext.methods.make("plain"))):
        assert np.abs(np.asarray(other.logits(tokens)) - theirs).max() > 1e-3 * scale
    assert ctxext_command(f"prove {export} --against {run}") == 0


@pytest.mark.check
def test_a_baseline_is_the_same_training_under_other_frequencies(tmp_path: Path) -> None:
    torch_llama(tmp_path / "base")
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    experiment = dataclasses.replace(
        load_experiment(tmp_path / "experiment.py"), init=str(tmp_path / "base"), export=None
    )
    records = ctxext.run(experiment, run_dir=tmp_path / "run", track=()).records
    models = [record.model for record in records]
    variants = {(model.method, model.steps): model.label for model in models}
    assert variants == {
        ("yarn(factor=2)", 0): "yarn(factor=2), zero-shot",
        ("yarn(factor=2)", 2): "yarn(factor=2), 2 steps at 128",
        ("linear(factor=2)", 2): "linear(factor=2), 2 steps at 128",
    }
    prompts = {record.question.prompt_sha256 for record in records}
    assert len(prompts) == 2, "every variant gets the same two questions"
    alone = dataclasses.replace(experiment, rope=Linear(2.0), baselines=(), zero_shot=())
    expected = ctxext.run(alone, run_dir=tmp_path / "alone", track=())
    baseline = ctxext.load(tmp_path / "run" / "baselines" / "linear-factor-2")
    params = ctxext.load(expected.path).params
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), baseline.params, params)
    assert jax.tree.all(equal)
    again = ctxext.run(experiment, run_dir=tmp_path / "run", track=()).records
    assert again == records, "a finished run is read, not repeated"
