"""A checkpoint that transformers wrote, the whole way: import, eval, run, export, proof, reload."""

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
    # Llama 2 7B and 13B have as many key heads as query heads.
    hub = tmp_path / "hub"
    torch_llama(hub, num_key_value_heads=TINY.num_attention_heads)
    file, run, base = (str(tmp_path / name) for name in ("experiment.py", "run", "base"))
    Path(file).write_text(EXPERIMENT)
    assert main(["import", str(hub), "--out", base, "--dtype", "float32"]) == 0
    method = ["--method", "pi", "--factor", "2"]
    evals = ["--evals", "passkey", "--seq-len", "128", "--out", str(tmp_path / "records")]
    assert main(["eval", base, *method, *evals]) == 0
    capsys.readouterr()
    assert main(["run", file, "--init", base, "--run-dir", run, "--no-wandb", "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)["proof"]
    assert proof["equal"]
    assert {reader["reader"] for reader in proof["readers"]} == {
        "numpy",
        "transformers",
    }
    assert proof["positions"] == [0, 63, 64, 127]
    # In transformers the result is the trained model, and neither the base nor the trained model
    # without its scaling.
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (1, 128))
    export = Path(run) / "export"
    model = transformers.AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    mask = torch.ones(1, 128, dtype=torch.long)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens), attention_mask=mask).logits.numpy()
    trained = ctxext.load(run, angles="float32")
    scale = np.abs(theirs).max()
    assert np.abs(np.asarray(trained.logits(tokens)) - theirs).max() <= 2e-5 * scale
    for other in (ctxext.load(base), trained.with_method(ctxext.methods.make("none"))):
        assert np.abs(np.asarray(other.logits(tokens)) - theirs).max() > 1e-3 * scale
    assert main(["prove", str(export), "--against", run]) == 0


@pytest.mark.check
def test_a_baseline_is_the_same_training_under_other_frequencies(tmp_path: Path) -> None:
    torch_llama(tmp_path / "base")
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    experiment = dataclasses.replace(
        load_experiment(tmp_path / "experiment.py"), init=str(tmp_path / "base"), export=None
    )
    rows = ctxext.run(experiment, run_dir=tmp_path / "run", track=()).rows
    variants = {(row.model.method, row.model.steps): row.model.label for row in rows}
    assert variants == {
        ("yarn(factor=2)", 0): "yarn(factor=2), zero-shot",
        ("yarn(factor=2)", 2): "yarn(factor=2), 2 steps at 128",
        ("linear(factor=2)", 2): "linear(factor=2), 2 steps at 128",
    }
    assert len({row.question.prompt_sha256 for row in rows}) == 2, (
        "every variant is asked the same two questions"
    )
    alone = dataclasses.replace(experiment, rope=Linear(2.0), baselines=(), zero_shot=())
    expected = ctxext.run(alone, run_dir=tmp_path / "alone", track=())
    baseline = ctxext.load(tmp_path / "run" / "baselines" / "linear-factor-2")
    params = ctxext.load(expected.path).params
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), baseline.params, params)
    assert jax.tree.all(equal)
    again = ctxext.run(experiment, run_dir=tmp_path / "run", track=()).rows
    assert again == rows, "a finished run is read, not repeated"
