"""The command line with the real wandb client and a fake server: a run, and an agent of a sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import wandb
import yaml

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.evals.record import read_records
from ctxext.files import read_json
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params
from ctxext.rope import Unscaled
from ctxext.tokenization.tokenizer import load_tokenizer
from support import wandb_server
from support.hf_files import write_hf
from support.wandb_server import manifest

CONFIG = LlamaConfig(1024, 64, 96, 2, 4, 2, 16, 1e-5, 1e4, 64)
EXPERIMENT = """
from ctxext.data import Stdlib
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment, Train
from ctxext.methods import Linear, Yarn
from ctxext.optim import Optim
from ctxext.rope import Unscaled

experiment = Experiment(
    name="tracked", init={init!r}, rope=Yarn(factor=2.0), data=Stdlib("heldout"),
    optim=Optim(learning_rate=1e-3),
    train=Train(
        steps=3, seq_len=128, batch_size=2, checkpoint_every=2, log_every=1, monitor_every=2
    ),
    evals=(Retrieval(seq_lens=(64, 128), depths=(0.0, 1.0), n=2),
           Perplexity(seq_lens=(64, 128), num_documents=2, target_tokens=32)),
    zero_shot=(Unscaled(),), baselines=(Linear(2.0),),
)
"""
SWEEP = """
import dataclasses

def sweep():
    plain = dataclasses.replace(experiment, evals=(), zero_shot=(), baselines=(), export=None)
    yield dataclasses.replace(plain, name="pi", rope=Linear(2.0))
    yield dataclasses.replace(plain, name="yarn")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    params = jax.tree.map(np.asarray, init_params(CONFIG, 0))
    write_hf(
        tmp_path / "base", CONFIG, params, Unscaled(), load_tokenizer(TINY_LLAMA), dtype="float32"
    )
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
    assert set(runs) == {"run", "baseline"}
    assert all(run.fields["groupName"] == "tracked" for run in runs.values())
    methods = {job: run.config["method"] for job, run in runs.items()}
    assert methods == {"run": "yarn(factor=2)", "baseline": "linear(factor=2)"}
    for run in runs.values():
        assert run.exit_code == 0
        curves = [row for row in run.history if "wrong_answers" not in row]
        assert [row["train/step"] for row in curves if "train/step" in row] == [0, 1, 2, 2, 3, 3]
        assert run.column("wrong_answers")
        assert len(run.column("train/short_drift")) == 3
        assert set(run.column("eval/seq_len")) == {64, 128}
    records = read_records(tmp_path / "run" / "records.jsonl")
    variants = list(dict.fromkeys(record.model.label for record in records))
    (heatmaps,) = runs["run"].column("heatmaps/passkey")
    assert heatmaps["captions"] == variants[:2]
    assert len(variants) == 3
    artifacts = {
        artifact["artifactCollectionName"]: number
        for number, artifact in enumerate(backend.artifacts, 1)
    }
    checkpoints = manifest(backend, artifacts["run-checkpoints"])["contents"]
    assert {name.partition("/")[0] for name in checkpoints} == {"2", "3"}
    exported = manifest(backend, artifacts["run-export"])["contents"]
    assert {"export/model.safetensors", "export/config.json"} <= set(exported)
    for entry in [*checkpoints.values(), *exported.values()]:
        assert entry["ref"].startswith("file://")


@pytest.mark.check
def test_a_sweep_s_agent_runs_what_the_server_hands_out(file, tmp_path):
    """`ctxext sweep --wandb-yaml` with a parameter added by hand, `wandb sweep`, `wandb agent`."""
    file.write_text(file.read_text() + SWEEP)
    with wandb_server.serving() as (backend, _):
        environment = {
            **os.environ,
            **wandb_server.environment(backend.url, tmp_path / "home"),
            "WANDB_SILENT": "false",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

        def command(*arguments: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                [sys.executable, "-m", *arguments],
                cwd=tmp_path,
                env=environment,
                timeout=300,
                capture_output=True,
                text=True,
            )

        options = ["--out", "out", "--wandb-yaml", "--train.steps", "1"]
        result = command("ctxext", "sweep", str(file), *options)
        assert result.returncode == 0, result.stderr
        parameter = "  optim.learning_rate:\n    value: 0.002\n"
        (tmp_path / "sweep.yaml").write_text(result.stdout + parameter)
        result = command("wandb", "sweep", "--project", "ctxext", "sweep.yaml")
        assert "wandb agent me/ctxext/sweep1" in result.stderr
        assert yaml.safe_load(backend.sweep)["command"][:3] == ["${env}", "ctxext", "run"]
        handed_out = {
            order["run_id"]: {name: entry["value"] for name, entry in order["args"].items()}
            for order in backend.orders
        }
        agent = command("wandb", "agent", "me/ctxext/sweep1")
    assert [args["trial"] for args in handed_out.values()] == ["pi", "yarn"], agent.stderr
    assert not backend.orders, agent.stderr
    # An agent only counts the trials that fail; their errors are in its output.
    assert "ctxext: " not in agent.stdout + agent.stderr
    configs = {
        (path / "wandb" / "run_id").read_text(): read_json(path / "config.json")
        for path in (tmp_path / "runs").iterdir()
    }
    assert configs.keys() == backend.runs.keys() == handed_out.keys(), agent.stderr
    for run_id, sent in backend.runs.items():
        assert sent.fields["sweep"] == "sweep1"
        assert sent.exit_code == 0
        assert sent.column("train/step") == [1]
        for config in (sent.config, configs[run_id]):
            assert config["name"] == handed_out[run_id]["trial"]
            assert config["train"]["steps"] == 1
            assert config["optim"]["learning_rate"] == 0.002
            assert handed_out[run_id]["optim.learning_rate"] == 0.002
    ropes = {config["name"]: config["rope"]["__type__"] for config in configs.values()}
    assert ropes == {"pi": "rope/linear", "yarn": "rope/yarn"}
