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
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "train/mfu",
    "train/device_peak_gib",
    "train/host_peak_gib",
    "train/short_drift",
    "train/short_loss",
    "train/attention_logit_max",
    "train/attention_logit/layer_00",
    "train/loss_by_position/32-63",
    "train/eval/passkey@8192",
    "train/eval/ruler-exact/vt@8192",
    "train/eval/loss@8192",
    "eval/ppl/yarn(factor=4)/nats_per_token",
    "eval/ppl:yarn/none/nats_per_token",
    "eval/longppl/none/nats_per_token",
    "eval/passkey/yarn, 48 steps at 1024/correct",
    "eval/passkey no-needle/none/answer_nll",
]
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1:DeprecationWarning")


def panels(view: dict) -> dict[str, list[dict]]:
    """The panels of every section of a workspace, by its name."""
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def shows(config: dict, key: str) -> bool:
    """Whether a panel shows a metric, by its name or by a pattern."""
    named = key in (config.get("metrics") or ())
    return named or bool(re.fullmatch(config.get("metricRegex", ""), key))


def test_sections_show_what_is_logged(capsys):
    pytest.importorskip("wandb_workspaces")
    assert main(["dashboard", "--json", "--project", "long", "--entity", "me"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["entity"], view["project"]) == ("me", "long")
    sections = panels(view)
    assert [name for name in sections if name in SECTIONS] == SECTIONS
    configs = [panel["config"] for section in SECTIONS for panel in sections[section]]
    for key in LOGGED:
        assert any(shows(config, key) for config in configs), key
    lengths = [config for config in configs if config.get("xAxis") == "eval/seq_len"]
    assert len(lengths) == 4
    assert all(config["xLogScale"] for config in lengths)
    assert {config["xAxis"] for config in configs if "xAxis" in config} == {
        "train/step",
        "eval/seq_len",
    }
    assert any("heatmaps/passkey" in config.get("mediaKeys", ()) for config in configs)


@pytest.mark.check
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
    # Of a run with train.eval_every.
    logged |= {
        "train/eval/passkey@8192",
        "train/eval/ruler-exact/vt@8192",
        "train/eval/loss@8192",
    }
    sections = panels(dashboard.as_json("p"))
    configs = [panel["config"] for section in SECTIONS[:2] for panel in sections[section]]
    by_step = [config for config in configs if config.get("xAxis") == "train/step"]
    for key in logged - {"train/weight"}:
        assert any(shows(config, key) for config in by_step), key
    titles = {
        name: panel["config"]["chartTitle"]
        for panel in sections["Training"]
        for name in panel["config"].get("metrics") or ()
    }
    assert "largest attention logit" in titles["train/attention_logit_max"]
    assert "short-context drift" in titles["train/short_drift"]
    assert "short" in titles["train/short_loss"]


def test_the_workspace_is_saved_in_the_project_of_the_user(tmp_path, monkeypatch, capsys):
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
    sections = dashboard.workspace("me", "ctxext").sections
    assert [section.name for section in sections] == SECTIONS
    assert [len(saved[name]) for name in SECTIONS] == [len(section.panels) for section in sections]


def test_without_a_login_it_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert main(["dashboard"]) == 2
    message = "set WANDB_API_KEY or run `wandb login`; --json needs no login"
    assert message in capsys.readouterr().err
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    assert main(["dashboard", "--json"]) == 2
    assert "pip install 'ctxext[dashboard]'" in capsys.readouterr().err
