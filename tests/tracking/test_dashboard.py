"""The workspace: its sections show what trackers log, and it is saved once."""

import json
import re

import pytest
import wandb

from ctxext.cli.main import main
from ctxext.files import read_jsonl
from ctxext.rundir import RunDir
from ctxext.tracking import dashboard, start_sinks
from ctxext.tracking.means import scalars
from ctxext.training.loop import train
from support import wandb_server
from support.tiny_train import tiny_base, tiny_experiment, write_texts

SECTIONS = ["Training", "Length generalisation", "Retrieval", "Comparison of methods"]
LOGGED = [
    *(
        f"train/{name}"
        for name in (
            "loss",
            "learning_rate",
            "grad_norm",
            "tokens_per_second",
            "mfu",
            "short_drift",
            "short_loss",
            "attention_logit_max",
            "attention_logit/layer_00",
            "loss_by_position/32-63",
        )
    ),
    *(
        f"eval/{name}"
        for name in (
            "ppl/yarn(factor=4)/nats_per_token",
            "ppl:yarn/none/nats_per_token",
            "longppl/none/nats_per_token",
            "passkey/yarn, 48 steps at 1024/correct",
            "passkey no-needle/none/answer_nll",
        )
    ),
]
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1:DeprecationWarning")


def panels(view: dict) -> dict[str, list[dict]]:
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_sections_show_what_is_logged(capsys):
    pytest.importorskip("wandb_workspaces")
    assert main(["dashboard", "--json", "--project", "long", "--entity", "me"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["entity"], view["project"]) == ("me", "long")
    sections = panels(view)
    assert [name for name in sections if name in SECTIONS] == SECTIONS
    configs = [panel["config"] for section in SECTIONS for panel in sections[section]]
    named = {name for config in configs for name in config.get("metrics") or ()}
    patterns = [config["metricRegex"] for config in configs if "metricRegex" in config]
    for key in LOGGED:
        assert key in named or any(re.fullmatch(pattern, key) for pattern in patterns), key
    lengths = [config for config in configs if config.get("xAxis") == "eval/seq_len"]
    assert len(lengths) == 4
    assert all(config["xLogScale"] for config in lengths)
    assert {config["xAxis"] for config in configs if "xAxis" in config} == {
        "train/step",
        "eval/seq_len",
    }
    assert any("heatmaps/passkey" in config.get("mediaKeys", ()) for config in configs)


def test_everything_that_training_logs_is_shown(tmp_path):
    """A real run's metrics: loss and speed, logits of each layer, loss by position, drift."""
    pytest.importorskip("wandb_workspaces")
    experiment = tiny_experiment(write_texts(tmp_path / "texts"), steps=4, monitor_every=2)
    run = RunDir(tmp_path / "run").open(experiment)
    with start_sinks(experiment, run, track=()) as sinks:
        train(experiment, run, tiny_base(), sinks=sinks, progress=False)
    logged = {key for row in read_jsonl(run.metrics_file) for key in scalars(row)}
    assert {
        "train/short_loss",
        "train/short_drift",
        "train/attention_logit_max",
        "train/attention_logit/layer_00",
        "train/attention_logit/layer_01",
        "train/loss_by_position/32-63",
    } <= logged
    configs = [
        panel["config"]
        for section in SECTIONS[:2]
        for panel in panels(dashboard.as_json("p"))[section]
    ]
    for key in logged - {"train/weight"}:
        assert any(
            key in (config.get("metrics") or ()) or re.fullmatch(config.get("metricRegex", ""), key)
            for config in configs
            if config.get("xAxis") == "train/step"
        ), key
    training = panels(dashboard.as_json("p"))["Training"]
    shown = {
        name: panel["config"]["chartTitle"]
        for panel in training
        for name in panel["config"].get("metrics") or ()
    }
    assert "largest attention logit" in shown["train/attention_logit_max"]
    assert "short-context drift" in shown["train/short_drift"]
    assert "short" in shown["train/short_loss"]


def test_it_is_saved_in_the_user_s_project(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    with wandb_server.serving() as (backend, _):
        for name, value in wandb_server.environment(backend.url, tmp_path).items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        assert main(["dashboard"]) == 0
        wandb.teardown()
    (view,) = backend.views
    assert (view["entityName"], view["projectName"]) == ("me", "ctxext")
    address = f"{backend.url}/me/ctxext?nw="
    assert capsys.readouterr().out.startswith(address)
    saved = panels({"spec": json.loads(view["spec"])})
    assert [(name, len(saved[name])) for name in SECTIONS] == [
        (section.name, len(section.panels))
        for section in dashboard.workspace("me", "ctxext").sections
    ]


def test_without_a_login_it_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert main(["dashboard"]) == 2
    assert (
        "set WANDB_API_KEY or run `wandb login`; --json needs no login" in capsys.readouterr().err
    )
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    assert main(["dashboard", "--json"]) == 2
    assert "pip install 'ctxext[dashboard]'" in capsys.readouterr().err
