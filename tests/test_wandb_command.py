"""The command line with the real wandb client and a stand-in server: a whole run, and one of a sweep's agent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import wandb
import wandb_server
from wandb_server import manifest

from ctxext.assets import TINY_LLAMA
from ctxext.cli import main
from ctxext.config import LlamaConfig
from ctxext.files import read_json, read_jsonl
from ctxext.interop import hf
from ctxext.model import init_params
from ctxext.rope import Unscaled
from ctxext.tokenizer import load_tokenizer

CONFIG = LlamaConfig(1024, 64, 96, 2, 4, 2, 16, 1e-5, 1e4, 64)
EXPERIMENT = """
from ctxext.data import Stdlib
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment, Train
from ctxext.methods import Linear, Yarn
from ctxext.optim import Optim
from ctxext.rope import Unscaled

experiment = Experiment(
    name="tracked", init={init!r}, rope=Yarn(factor=2.0), data=Stdlib("heldout"), optim=Optim(learning_rate=1e-3),
    train=Train(steps=3, seq_len=128, batch_size=2, checkpoint_every=2, log_every=1, probe_every=2),
    evals=(Retrieval(seq_lens=(64, 128), depths=(0.0, 1.0), n=2),
           Perplexity(seq_lens=(64, 128), num_documents=2, target_tokens=32)),
    zero_shot=(Unscaled(),), baselines=(Linear(2.0),),
)
"""
SWEEP = """
method: grid
parameters:
  rope.factor: {{values: [4]}}
  train.steps: {{values: [1]}}
command: ["${{env}}", {python!r}, "-m", "ctxext", "train", {file!r}, "--run-dir", {run!r}, "${{args}}"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    params = jax.tree.map(np.asarray, init_params(CONFIG, 0))
    hf.save(tmp_path / "base", CONFIG, params, Unscaled(), load_tokenizer(TINY_LLAMA), dtype="float32")
    (tmp_path / "experiment.py").write_text(EXPERIMENT.format(init=str(tmp_path / "base")))
    return tmp_path / "experiment.py"


@pytest.mark.check
def test_a_run_and_its_baseline_arrive_whole(file, tmp_path, monkeypatch, capsys):
    with wandb_server.serving() as (backend, _):
        for name, value in wandb_server.environment(backend.url, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        assert main(["run", str(file), "--run-dir", str(tmp_path / "run"), "--json"]) == 0
        wandb.teardown()
    json.loads(capsys.readouterr().out)
    runs = {run.fields["jobType"]: run for run in backend.runs.values()}
    assert set(runs) == {"run", "baseline"} and all(run.fields["groupName"] == "tracked" for run in runs.values())
    methods = {job: run.config["method"] for job, run in runs.items()}
    assert methods == {"run": "yarn(factor=2)", "baseline": "linear(factor=2)"}
    for run in runs.values():
        assert run.exit_code == 0 and run.column("train/step") == [0, 1, 2, 2, 3, 3]
        assert len(run.column("train/short_drift")) == 3 and set(run.column("eval/seq_len")) == {64, 128}
    rows = read_jsonl(tmp_path / "run" / "rows.jsonl")
    arms = list(dict.fromkeys(row["method"] for row in rows))
    (shown,) = runs["run"].column("heatmaps/passkey")
    assert shown["captions"] == arms[:2] and len(arms) == 3
    found = {artifact["artifactCollectionName"]: number for number, artifact in enumerate(backend.artifacts, 1)}
    kept = manifest(backend, found["run-checkpoints"])["contents"]
    assert {name.partition("/")[0] for name in kept} == {"2", "3"}
    exported = manifest(backend, found["run-export"])["contents"]
    assert {"export/model.safetensors", "export/config.json"} <= set(exported)
    assert all(entry["ref"].startswith("file://") for entry in [*kept.values(), *exported.values()])


@pytest.mark.check
def test_a_sweep_s_agent_runs_the_command_line(file, tmp_path):
    """`wandb sweep` and `wandb agent`; what the sweep chose arrives as --rope.factor=4 and --train.steps=1."""
    run = tmp_path / "run"
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(python=sys.executable, file=str(file), run=str(run)))
    with wandb_server.serving() as (backend, _):
        environment = {
            **os.environ, **wandb_server.environment(backend.url, tmp_path / "home"), "WANDB_SILENT": "false",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }  # fmt: skip
        common = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        wandb_command = [sys.executable, "-m", "wandb"]
        made = subprocess.run([*wandb_command, "sweep", "--project", "ctxext", "sweep.yaml"], **common)
        assert "wandb agent me/ctxext/sweep1" in made.stderr
        args = {"rope.factor": {"value": 4}, "train.steps": {"value": 1}}
        backend.sweep = (tmp_path / "sweep.yaml").read_text()
        backend.orders = [{"type": "run", "run_id": "chosen01", "args": args, "program": ""}]
        done = subprocess.run([*wandb_command, "agent", "--count", "1", "me/ctxext/sweep1"], **common)
    assert "--rope.factor=4 --train.steps=1" in done.stderr
    config = read_json(run / "config.json")
    assert (config["rope"]["factor"], config["train"]["steps"]) == (4, 1), done.stderr
    sent = backend.runs["chosen01"]
    assert sent.fields["sweep"] == "sweep1" and sent.exit_code == 0 and sent.column("train/step") == [1]
    assert sent.config["rope"]["factor"] == 4 and (run / "wandb" / "run_id").read_text() == "chosen01"
