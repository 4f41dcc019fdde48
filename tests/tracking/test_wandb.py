"""The real wandb, offline, read back with its own tool; a fake one that fails at every call."""

import json
import subprocess
import sys

import pytest

from ctxext.evals.wrong_answers import WrongAnswer
from ctxext.files import read_json, read_jsonl
from ctxext.rundir import RunDir
from ctxext.tracking import start_sinks
from ctxext.tracking.wandb import WandbSink, wandb_mode, why_not_online
from support.planted import passkey_answer, text_losses
from support.tiny_train import tiny_experiment

RECORDS = [
    passkey_answer("yarn", 64, 0, True),
    passkey_answer("yarn", 64, 1, False),
    passkey_answer("yarn", 64, 0, False, condition="no-needle"),
    text_losses("yarn", 128, 0, nll=2.0, count=4),
    text_losses("yarn", 128, 1, nll=2.0, count=1),
]
WRONG = WrongAnswer("passkey", 64, 0.5, "The key is", "1234", "12", "part")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    experiment = tiny_experiment(tmp_path / "texts")
    return experiment, RunDir(tmp_path / "run").open(experiment)


def inspect(directory) -> list[dict]:
    """The records of an offline run, read by wandb itself."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(directory)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_offline_wandb_holds_the_run(opened):
    experiment, run = opened
    with start_sinks(experiment, run) as sinks:
        for step in (10, 20):
            for sink in sinks:
                sink.log({"step": step, "loss": 1 / step})
        for step, answer in ((10, WRONG), (20, WRONG._replace(got="nothing"))):
            for sink in sinks:
                sink.log({"step": step, "eval/passkey@64": step / 100})
                sink.wrong_answers(step, [answer])
        for sink in sinks:
            sink.records(RECORDS)
    assert [row["step"] for row in read_jsonl(run.metrics_file)] == [10, 20, 10, 20]
    identity = (run.path / "wandb" / "run_id").read_text()
    (folder,) = run.path.glob(f"wandb/offline-run-*-{identity}")
    records = inspect(folder)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    train = [(row["train/step"], row["train/loss"]) for row in history if "train/loss" in row]
    assert train == [(10, 0.1), (20, 0.05)]
    reach = [
        (row["train/step"], row["train/eval/passkey@64"])
        for row in history
        if "train/eval/passkey@64" in row
    ]
    assert reach == [(10, 0.1), (20, 0.2)]
    files = folder.glob("files/media/table/wrong_answers_*.json")
    table = max((read_json(file) for file in files), key=lambda table: len(table["data"]))
    assert table["columns"] == ["step", *WRONG._fields]
    assert table["data"] == [[10, *WRONG], [20, *WRONG._replace(got="nothing")]]
    floor, passkey, ppl = (row for row in history if "eval/seq_len" in row)
    assert (passkey["eval/seq_len"], passkey["eval/passkey/yarn/correct"]) == (64, 0.5)
    assert floor["eval/passkey no-needle/yarn/correct"] == 0
    assert passkey["eval/passkey/yarn/answer_nll"] == 1.0
    assert "eval/passkey/yarn/tokens" not in passkey
    assert (ppl["eval/seq_len"], ppl["eval/ppl/yarn/nll"]) == (128, 2.0)
    assert ppl["eval/ppl/yarn/nats_per_token"] == 0.8
    metrics = [record for record in records if record["type"] == "metric"]
    assert '"train/step"' in json.dumps(metrics)
    configs = [record for record in records if record["type"] in ("run", "config")]
    assert '"factor"' in json.dumps(configs)


class Broken:
    """A fake of the wandb module and of its run; the call named by `where` raises."""

    dir = "run/files"

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls = []

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls.append((name, kwargs))
            if name == self.where:
                raise RuntimeError(f"{name} is broken\nwith details")
            return self

        return call


@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_any_failure_prints_one_line_and_stops_tracking(opened, monkeypatch, capsys, where):
    fake = Broken(where)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with start_sinks(*opened) as sinks:
        for sink in sinks:
            sink.log({"step": 1})
            sink.log({"step": 2})
            sink.records(RECORDS)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"wandb is off for the rest of this run (RuntimeError: {where} is broken)"]
    assert len(read_jsonl(opened[1].metrics_file)) == 2
    # A run that has started is finished.
    assert [name for name, _ in fake.calls].count("finish") == (where in ("log", "finish"))


def test_a_resumed_run_keeps_its_id(opened, monkeypatch):
    fake = Broken("")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        WandbSink(*opened, "group", "train").finish()
    first, second = (kwargs for name, kwargs in fake.calls if name == "init")
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"


def test_a_failure_reaches_wandb_and_a_clean_stop_is_not_a_failure(opened, monkeypatch):
    fake = Broken("")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for error in (ValueError, SystemExit):
        with pytest.raises(error), start_sinks(*opened):
            raise error
    assert [kwargs["exit_code"] for name, kwargs in fake.calls if name == "finish"] == [1, 0]


def test_off_by_flag_and_by_mode(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would raise
    with start_sinks(*opened, track=()) as sinks:
        assert len(sinks) == 1
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with start_sinks(*opened) as sinks:
        assert len(sinks) == 1


def test_online_only_when_configured(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert wandb_mode() == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.delenv("NETRC")
    assert wandb_mode() == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode() == "offline"


def test_the_id_of_a_stranger_s_run_is_an_id_and_no_other_file_of_the_user(opened, tmp_path):
    """Whatever the file holds is sent to wandb."""
    experiment, run = opened
    secret = tmp_path / "secret"
    secret.write_text("password")
    id_file = run.path / "wandb" / "run_id"
    id_file.parent.mkdir()
    id_file.symlink_to(secret)
    with pytest.raises(ValueError, match="run_id is a link to"):
        WandbSink(experiment, run, "group", "train")
    id_file.unlink()
    id_file.write_text("../../elsewhere\n$(id)")
    with pytest.raises(ValueError, match="does not hold the id of a wandb run"):
        WandbSink(experiment, run, "group", "train")


@pytest.mark.parametrize(
    ("key", "error", "sentence"),
    [
        ("abc", "WANDB_API_KEY invalid: API key must have 40+ characters.", "refuses the key in W"),
        ("x" * 40, "returned error 401: user is not logged in", "wandb refuses the key in WANDB_"),
        (None, "returned error 403: permission denied", "refuses the key of this login (returned"),
        ("x" * 40, "connection refused", "wandb does not answer (connection refused)"),
    ],
)
def test_a_refused_key_is_said_to_be_that(key, error, sentence, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert sentence in why_not_online(RuntimeError(error))


@pytest.mark.check
def test_a_run_with_a_wrong_key_is_kept_offline(opened, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    with start_sinks(*opened) as sinks:
        for sink in sinks:
            sink.log({"step": 10, "loss": 2.0})
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb refuses the key in WANDB_API_KEY (" in line
    assert "correct it; this run is kept offline, upload it with: wandb sync " in line
