"""The real wandb client and a fake server: runs arrive whole, resume, sync and outlive it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wandb

from ctxext.rundir import RunDir
from ctxext.tracking import kept_offline, start_sinks
from support import wandb_server
from support.planted import passkey_answer
from support.tiny_train import tiny_experiment
from support.wandb_server import manifest

RECORDS = [passkey_answer("yarn", 64, 0, True), passkey_answer("yarn", 64, 1, False)]


@pytest.fixture
def served(tmp_path, monkeypatch):
    with wandb_server.serving() as (backend, server):
        for name, value in wandb_server.environment(backend.url, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # a process keeps the first server it talks to
        yield backend, server
        wandb.teardown()


@pytest.fixture
def opened(tmp_path):
    experiment = tiny_experiment(tmp_path / "texts", steps=30)
    return experiment, RunDir(tmp_path / "run").open(experiment)


def sync(*arguments: str | Path) -> None:
    """Run `wandb sync ARGUMENTS`, as a user types it."""
    result = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, arguments)],
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_a_run_arrives_whole_and_resumes(served, opened):
    backend, _ = served
    experiment, run = opened
    checkpoint = run.path / "checkpoints" / "20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "params").write_bytes(b"12345")
    with start_sinks(experiment, run) as sinks:
        for sink in sinks:
            sink.log({"step": 10, "loss": 2.0, "learning_rate": 1e-3})
            sink.log({"step": 20, "short_loss": 3.0, "alarm": "step 20: worse"})
            sink.records(RECORDS)
            sink.images(lambda: {"passkey/yarn(factor=4)": np.full((8, 12, 3), 200, np.uint8)})
            sink.artifact("checkpoints", [checkpoint], {"steps": [20]})
    sent = backend.only()
    assert sent.exit_code == 0
    assert sent.column("train/step") == [10, 20]
    assert sent.column("train/loss") == [2.0]
    assert sent.column("train/short_loss") == [3.0]
    assert sent.column("eval/seq_len") == [64]
    assert sent.column("eval/passkey/yarn/correct") == [0.5]
    assert sent.config["rope"]["factor"] == 2.0
    assert sent.config["train"]["steps"] == 30
    assert sent.config["method"] == "linear(factor=2)"
    assert "git_commit" in sent.config
    assert sent.config["fingerprint"] == experiment.fingerprint
    fields = sent.fields
    assert fields["project"] == "ctxext"
    assert fields["displayName"] == "run"
    assert fields["groupName"] == "tiny"
    assert fields["jobType"] == "train"
    assert fields["tags"] == ["linear", "causal", "contiguous", "full"]
    assert [alert["text"] for alert in sent.alerts] == ["step 20: worse"]

    (table,) = (data for path, data in backend.uploads.items() if "media/table/rows" in path)
    columns = json.loads(table)["columns"]
    assert columns == list(dict.fromkeys(name for record in RECORDS for name in record.columns()))
    item = columns.index("item")
    correct = columns.index("correct")
    rows = json.loads(table)["data"]
    assert [row[item] for row in rows] == [record.item for record in RECORDS]
    assert [row[correct] for row in rows] == [True, False]
    assert [record.columns()["correct"] for record in RECORDS] == [True, False]
    (picture,) = (data for path, data in backend.uploads.items() if path.endswith(".png"))
    assert picture.startswith(b"\x89PNG")
    assert picture[16:24] == bytes([0, 0, 0, 12, 0, 0, 0, 8])  # width, height
    (heatmaps,) = sent.column("heatmaps/passkey")
    assert heatmaps["captions"] == ["yarn(factor=4)"]
    assert heatmaps["count"] == 1
    names = [artifact["artifactCollectionName"] for artifact in backend.artifacts]
    number = names.index("run-checkpoints") + 1
    ((path, entry),) = manifest(backend, number)["contents"].items()
    assert path == "20/params"
    assert entry["ref"] == (checkpoint / "params").resolve().as_uri()
    assert entry["size"] == 5
    assert not any(data == b"12345" for data in backend.uploads.values())
    assert json.loads(backend.artifacts[number - 1]["metadata"]) == {"steps": [20]}

    with start_sinks(experiment, run) as sinks:
        for sink in sinks:
            sink.log({"step": 30, "loss": 1.0})
    assert backend.only().column("train/step") == [10, 20, 30]
    steps = backend.only().column("_step")
    assert steps == sorted(set(steps))


def break_server(server: wandb_server.Server, how: str) -> None:
    """Close the port of the server, or let it accept requests without answering them."""
    if how == "closed":
        wandb_server.stop(server)
    else:
        server.backend.answers.clear()


def test_offline_runs_are_synced_into_one(served, opened, monkeypatch):
    backend, _ = served
    monkeypatch.setenv("WANDB_MODE", "offline")
    _, run = opened
    for step in (10, 20):
        with start_sinks(*opened) as sinks:
            for sink in sinks:
                sink.log({"step": step, "loss": 1 / step})
    assert not backend.operations
    monkeypatch.setenv("WANDB_MODE", "online")
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert kept_offline(run.path) == f"wandb sync {run.path}/wandb/offline-run-*"
    sync(*folders)
    assert kept_offline(run.path) == ""
    assert sorted(backend.only().column("train/step")) == [10, 20]


@pytest.mark.parametrize("how", ["closed", pytest.param("silent", marks=pytest.mark.check)])
def test_without_a_server_the_run_is_kept_offline(how, served, opened, monkeypatch, capsys):
    backend, server = served
    break_server(server, how)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    start = time.monotonic()
    with start_sinks(*opened) as sinks:
        for sink in sinks:
            sink.log({"step": 10, "loss": 2.0})
    assert time.monotonic() - start < 15
    assert not backend.runs
    printed = capsys.readouterr().err
    assert "wandb does not answer" in printed
    assert printed.count("\n") == 1
    with wandb_server.serving() as (later, _):
        monkeypatch.setenv("WANDB_BASE_URL", later.url)
        sync(*printed.rpartition("wandb sync ")[2].split())
    assert later.only().column("train/step") == [10]


@pytest.mark.parametrize("how", ["closed", pytest.param("silent", marks=pytest.mark.check)])
def test_a_server_that_dies_loses_nothing(how, served, opened, monkeypatch, capsys):
    _, server = served
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    with start_sinks(*opened) as sinks:
        for sink in sinks:
            sink.log({"step": 10, "loss": 2.0})
        break_server(server, how)
        start = time.monotonic()
        for step in (20, 30):
            for sink in sinks:
                sink.log({"step": step, "loss": 1.0})
        assert time.monotonic() - start < 1, "a step does not wait for the server"
    assert time.monotonic() - start < 15
    printed = capsys.readouterr().err
    assert "wandb has not uploaded everything" in printed
    assert printed.count("\n") == 1
    with wandb_server.serving() as (later, _):
        monkeypatch.setenv("WANDB_BASE_URL", later.url)
        sync(*printed.rpartition("wandb sync ")[2].split())
    assert later.only().column("train/step") == [10, 20, 30]
