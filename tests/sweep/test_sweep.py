"""Sweeps: real trials, one of which fails; finished ones are not repeated; one report on all."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ctxext import sweep
from ctxext.assets import TINY_LLAMA
from ctxext.cli.commands.sweep import missing_texts
from ctxext.cli.main import main
from ctxext.evals.record import read_records
from ctxext.experiment import load_sweep
from ctxext.sweep.watch import Watch
from support.tiny_train import tiny_experiment

FILE = """
import dataclasses
from pathlib import Path
from ctxext.data import Stdlib
from ctxext.evals import Retrieval
from ctxext.experiment import Experiment, Train
from ctxext.methods.linear import Linear
from ctxext.methods.yarn import Yarn
from ctxext.optim import Optim

one = Experiment(
    name="pi", init="tiny-llama", rope=Linear(2.0), data=Stdlib("train"),
    optim=Optim(learning_rate=1e-4), train=Train(steps=0, seq_len=512, batch_size=1),
    evals=(Retrieval(seq_lens=(512,), n=2),), export=None,
)

def sweep():
    yield one
    yield dataclasses.replace(one, name="yarn", rope=Yarn(2.0))
    yield dataclasses.replace(one, name="lost", init=str(Path(__file__).parent / "base"))
"""


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of a trial run once, and each trial compiles them."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "three.py"
    path.write_text(FILE)
    return path


def sweep_command(file: Path, out: Path, *more: str) -> list[str]:
    return ["sweep", str(file), "--out", str(out), "--track", "", *more]


def command(arguments: list[str]) -> tuple[int, dict, str]:
    """(status, printed JSON, stderr) of the command in its own process."""
    result = subprocess.run(
        [sys.executable, "-m", "ctxext", *arguments], capture_output=True, text=True
    )
    return result.returncode, json.loads(result.stdout), result.stderr


def check_sweep(file: Path, out: Path, *options: str) -> None:
    """Two trials succeed and one fails with its reason; after a fix, only that one runs again."""
    arguments = sweep_command(file, out, "--jobs", "2", "--json", *options)
    status, result, _ = command(arguments)
    failed = {name: bool(outcome["status"]) for name, outcome in result["trials"].items()}
    assert status == 1
    assert failed == {"pi": False, "yarn": False, "lost": True}
    assert "does not exist" in result["trials"]["lost"]["tail"]
    page = (out / "report.html").read_text()
    assert "linear(factor=2), zero-shot (pi)" in page
    assert "yarn(factor=2), zero-shot (yarn)" in page
    records = read_records(out / "yarn" / "records.jsonl")
    assert {record.seq_len for record in records} == {512}
    assert records[0].model.rope == "yarn(factor=2)"

    def times() -> list[int]:
        """When the records of the two good trials were last written."""
        return [(out / name / "records.jsonl").stat().st_mtime_ns for name in ("pi", "yarn")]

    before = times()
    (file.parent / "base").symlink_to(TINY_LLAMA)
    status, result, messages = command(arguments)
    assert status == 0
    assert "1 of 3 trials to run" in messages
    assert not any(outcome["status"] for outcome in result["trials"].values())
    assert times() == before


@pytest.mark.check
def test_trials_as_local_processes(file: Path, tmp_path: Path):
    check_sweep(file, tmp_path / "out")


@pytest.mark.check
def test_trials_as_jobs_of_submitit(file: Path, tmp_path: Path):
    pytest.importorskip("submitit")
    check_sweep(file, tmp_path / "out", "--launcher", "submitit-local")


# The processes of the cluster, which use no jax, are forked.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_trials_on_ray_with_two_nodes(file: Path, tmp_path: Path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        check_sweep(file, tmp_path / "out", "--launcher", "ray", "--address", cluster.address)
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_workers_of_ray_import_from_the_directory_of_the_sweep(tmp_path: Path, monkeypatch):
    """As docs/security.md warns."""
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=1)
    try:
        paths = ray.get(ray.remote(lambda: __import__("sys").path).remote())
    finally:
        ray.shutdown()
    assert str(tmp_path) in paths


def test_a_failed_trial_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ctxext.sweep.local import launch

    attempts = tmp_path / "attempts"
    code = f"""
import pathlib, sys
attempts = pathlib.Path({str(attempts)!r})
before = attempts.read_text() if attempts.exists() else ""
attempts.write_text(before + "x")
sys.exit(len(before) < 2)
"""

    def start(trial: sweep.Trial) -> subprocess.Popen:
        """A process that fails twice and then succeeds."""
        return subprocess.Popen([sys.executable, "-c", code])

    monkeypatch.setattr(sweep.Trial, "start", start)
    trial = sweep.Trial.of("a.py", "one", tmp_path, [])
    one_retry = sweep.Resources(retries=1)
    assert [outcome.status for outcome in launch([trial], one_retry)] == [1]
    assert attempts.read_text() == "xx"
    assert [outcome.status for outcome in launch([trial], one_retry)] == [0]
    assert attempts.read_text() == "xxx"
    attempts.unlink()
    assert trial.perform(retries=1).status == 1
    assert trial.perform(retries=1).status == 0


def test_a_trial_starts_in_no_linked_directory_and_appends_to_no_linked_log(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("theirs")
    out = tmp_path / "out"
    out.mkdir()
    trial = sweep.Trial.of("a.py", "one", out, [])
    assert trial.log == out / "one.log"
    trial.log.symlink_to(victim)
    with pytest.raises(ValueError, match=r"one\.log is a link to"):
        trial.start()
    trial.log.unlink()
    (out / "two").symlink_to(outside)
    with pytest.raises(ValueError, match="two is a link to"):
        sweep.Trial.of("a.py", "two", out, []).start()
    assert victim.read_text() == "theirs"
    assert list(outside.iterdir()) == [victim]


def test_a_second_sweep_in_the_same_place_is_refused(tmp_path: Path, monkeypatch):
    """By name of the process of the first; that one goes on as if nothing had been."""
    out = tmp_path / "out"
    trial = sweep.Trial("a", ("run",), out / "a")

    def launch(trials, resources):
        holder = rf"process {os.getpid()} on [\w.-]+ since 20\d\d-"
        message = f"out is in use by {holder}.*; wait for it, stop it, or choose another --out"
        with pytest.raises(ValueError, match=message):
            sweep.sweep([trial], out, "local", resources)
        yield sweep.Outcome("a", 1, ["run"], "a.log")

    monkeypatch.setattr("ctxext.sweep._launcher", lambda name: launch)
    result = sweep.sweep([trial], out, "local", sweep.Resources())
    assert result.failed == ["a"]
    assert list(json.loads((out / "sweep.json").read_text())) == ["a"]


class Clock:
    """A clock that moves when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_of_trials_is_read_from_their_logs(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Four trials, two at a time, of which one was started before, for 50 seconds."""
    trials = {name: sweep.Trial(name, ("run",), tmp_path / name) for name in "abcd"}
    trials["a"].log.write_text("stage 7 of 7, report\n")
    clock = Clock()
    kept: list[dict[str, tuple]] = []
    watch = Watch(
        list(trials.values()),
        keep=lambda outcomes: kept.append(
            {x.name: (x.status, x.seconds, x.at) for x in outcomes.values()}
        ),
        before={"a": 50.0},
        clock=clock,
    )
    watch.look()
    assert kept[-1] == {}
    with trials["a"].log.open("a") as log:
        log.write("stage 1 of 7, prepare\nstage 2 of 7, train a\n\na: step 3/9  loss \x1b[2J 2.5\n")
    trials["b"].log.write_text("")
    watch.look()
    clock.now += 30
    trials["b"].log.write_text("loading\n")
    watch.look()
    at_a = "stage 2 of 7, train a; a: step 3/9  loss \\x1b[2J 2.5"
    assert kept[-1] == {"a": (None, 80.0, at_a), "b": (None, 30.0, "loading")}
    assert capsys.readouterr().err == "", "no more often than every minute"
    clock.now += 30
    watch.look()
    assert capsys.readouterr().err.splitlines() == [
        "sweep: 0 of 4 trials have ended",
        f"trial a, 2 min: {at_a}",
        "trial b, 1 min: loading",
    ]
    trials["b"].log.write_text("loading\nctxext: no such text\n")
    watch.ended(trials["b"].outcome(2, 60.0))
    assert kept[-1]["b"] == (2, 60.0, "")
    clock.now += 40
    watch.ended(trials["a"].outcome(0, 100.0))
    assert kept[-1]["a"] == (0, 150.0, "")
    # 150 seconds each, two at a time: the two that are left take as long as one.
    assert capsys.readouterr().err.splitlines() == [
        "trial b: FAILED with status 2 after 1 min: ctxext: no such text; "
        "1 of 4 trials have ended, 1 failed",
        "trial a: done in 2 min; 2 of 4 trials have ended, 1 failed, about 2 min left",
    ]


def test_what_trials_cost_is_kept_and_listed_at_the_end(tmp_path: Path, monkeypatch):
    """Also of those that failed; a second start of a trial adds to what it has cost."""
    out = tmp_path / "out"
    trials = [sweep.Trial(name, ("run", name), out / name) for name in ("a", "b")]
    endings = {"a": (1, 100.0), "b": (0, 30.0)}
    states = []

    def launch(remaining, resources):
        for trial in remaining:
            states.append(json.loads((out / "sweep.json").read_text()) if states else {})
            trial.run.mkdir(exist_ok=True)
            (trial.run / "records.jsonl").touch()
            yield trial.outcome(*endings[trial.name])

    monkeypatch.setattr("ctxext.sweep._launcher", lambda name: launch)
    result = sweep.sweep(trials, out, "local", sweep.Resources())
    assert states[1]["a"]["status"] == 1
    assert states[1]["b"] | {"command": 0, "log": 0} == {
        **{"name": "b", "status": None, "command": 0, "log": 0, "tail": ""},
        **{"seconds": None, "at": "waits"},
    }
    lines = result.text.splitlines()
    assert lines[-4:] == [
        "1 of 2 trials are done; together they took 2 min",
        "trial             ended   took",
        "a      failed, status 1  2 min",
        "b                  done   30 s",
    ]
    endings["a"] = (0, 200.0)
    result = sweep.sweep(trials, out, "local", sweep.Resources())
    assert {name: outcome.seconds for name, outcome in result.outcomes.items()} == {
        "a": 300.0,
        "b": 30.0,
    }
    stored = json.loads((out / "sweep.json").read_text())
    assert stored == {name: dataclasses.asdict(x) for name, x in result.outcomes.items()}


def test_a_trial_that_was_stopped_is_not_done_though_it_ended_with_0(tmp_path: Path, monkeypatch):
    """As SIGTERM ends the training of a run, before its last evaluation."""
    trials = [sweep.Trial(name, ("run", name), tmp_path / name) for name in ("a", "b")]
    asked = []

    def launch(remaining, resources):
        for trial in remaining:
            asked.append(trial.name)
            trial.run.mkdir(exist_ok=True)
            (trial.run / "records.jsonl").touch()
            (trial.run / "stages.json").write_text('{"stages": [{"kind": "evaluate"}]}')
            trial.log.write_text("stopped after step 2 of 6, saved\n")
            if trial.name == "b" or asked.count("a") == 2:
                (trial.run / "budget.json").write_text("{}")
            yield trial.outcome(0, 1.0)

    monkeypatch.setattr("ctxext.sweep._launcher", lambda name: launch)
    result = sweep.sweep(trials, tmp_path, "local", sweep.Resources())
    assert (result.failed, result.runs) == (["a"], [tmp_path / "b"])
    assert "trial a failed with status 143" in result.text
    assert "stopped after step 2 of 6, saved" in result.text
    result = sweep.sweep(trials, tmp_path, "local", sweep.Resources())
    assert (result.failed, len(result.runs)) == ([], 2)
    assert asked == ["a", "b", "a"]


def test_the_time_of_a_trial_is_that_of_its_process(tmp_path: Path, monkeypatch):
    """All its tries, here and in a job."""
    from ctxext.sweep.local import launch

    def start(trial: sweep.Trial) -> subprocess.Popen:
        return subprocess.Popen(["sh", "-c", "sleep 0.3; exit 1"])

    monkeypatch.setattr(sweep.Trial, "start", start)
    trial = sweep.Trial.of("a.py", "one", tmp_path, [])
    started = time.monotonic()
    (outcome,) = launch([trial], sweep.Resources(retries=1))
    times = [x.seconds or 0.0 for x in (outcome, trial.perform(retries=1))]
    assert min(times) >= 0.6
    assert sum(times) <= time.monotonic() - started


def test_outcomes_without_costs_are_read(tmp_path: Path, monkeypatch):
    """As an earlier version wrote them."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "records.jsonl").touch()
    old = {"name": "a", "status": 0, "command": ["run"], "log": "a.log", "tail": ""}
    (out / "sweep.json").write_text(json.dumps({"a": old}))
    monkeypatch.setattr("ctxext.sweep._launcher", lambda name: lambda *_: pytest.fail("again"))
    result = sweep.sweep([sweep.Trial("a", ("run",), out / "a")], out, "local", sweep.Resources())
    assert result.text.splitlines()[-3:] == [
        "1 of 1 trials are done; together they took 0 s",
        "trial  ended  took",
        "a       done",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "it must be an object"),
        ('{"a": 3}', "it.a must be an object"),
        ('{"a": {"status": 0}}', "a must have name, status, command, log, tail"),
        ('{"a": {"command": "run"}}', "it.a.command must be a list"),
    ],
)
def test_a_damaged_list_of_outcomes_is_named(content, message, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep.json").write_text(content)
    trial = sweep.Trial("a", ("run",), out / "a")
    message = f"{out / 'sweep.json'} is damaged: {message}.*; restore it, or remove it to run all"
    with pytest.raises(ValueError, match=message):
        sweep.sweep([trial], out, "local", sweep.Resources())


@pytest.mark.check
def test_stopping_a_sweep_lets_its_trials_save(file: Path, tmp_path: Path):
    """SIGTERM while a trial trains: it saves, and the same command resumes it."""
    only_the_first, _, _ = file.read_text().partition("    yield dataclasses")
    file.write_text(only_the_first.replace("steps=0", "steps=400, checkpoint_every=400"))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "ctxext", *sweep_command(file, out)], stderr=subprocess.DEVNULL
    )
    log = out / "pi" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and "\n" in log.read_text():
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)  # not SIGINT, which a shell's background jobs ignore
    assert process.wait(60) == 143
    assert "saved; resume with" in (out / "pi.log").read_text()
    assert any(path.name.isdecimal() for path in (out / "pi" / "checkpoints").glob("*"))


def test_the_commands_of_trials_and_bad_sweeps(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert list(load_sweep(file)) == ["pi", "yarn", "lost"]
    assert main(sweep_command(file, tmp_path / "out", "--dry-run", "--train.steps", "3")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "--trial yarn" in lines[1]
    assert lines[1].endswith("--train.steps 3")
    assert not (tmp_path / "out").exists()
    chosen = ["--dry-run", "--train.steps", "3", "--trials", "l*", "pi"]
    assert main(sweep_command(file, tmp_path / "out", *chosen)) == 0
    assert capsys.readouterr().out.splitlines() == [lines[0], lines[2]]
    assert main(sweep_command(file, tmp_path / "out", "--trials", "pi", "yorn")) == 2
    assert "no trial is called yorn; there are 3, such as yarn" in capsys.readouterr().err
    assert main(["run", str(file), "--trial", "yarn", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "yarn"
    assert main(["run", str(file), "--trial", "none"]) == 2
    assert "has no trial 'none'; known: pi, yarn, lost" in capsys.readouterr().err
    (tmp_path / "twins.py").write_text(FILE.replace('name="yarn"', 'name="pi"'))
    with pytest.raises(ValueError, match="each with its own name"):
        load_sweep(tmp_path / "twins.py")
    (tmp_path / "nothing.py").write_text("x = 1")
    with pytest.raises(ValueError, match="defines no sweep"):
        load_sweep(tmp_path / "nothing.py")


def test_texts_that_are_not_there_are_named_with_the_trials_that_need_them(tmp_path: Path):
    there, gone, other = tmp_path, tmp_path / "gone", tmp_path / "other"
    texts = {"a": there, "b": gone, "c": other, "d": gone}
    lines = list(missing_texts({name: tiny_experiment(path) for name, path in texts.items()}))
    assert [line.partition(", which is not there: ")[0] for line in lines] == [
        f"missing for 2 trials: data reads {gone}",
        f"missing for c: data reads {other}",
    ]


def test_the_yaml_of_wandb_runs_the_same_command(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Read by PyYAML, and its command filled in as an agent does it."""
    assert main(sweep_command(file, tmp_path / "out", "--wandb-yaml", "--train.steps", "7")) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["method"] == "grid"
    assert config["parameters"] == {"trial": {"values": ["pi", "yarn", "lost"]}}
    command = [part for part in config["command"] if part != "${env}"]
    at = command.index("${args}")
    command[at : at + 1] = ["--trial=yarn", "--optim.learning_rate=0.002"]
    assert command[0] == "ctxext"
    assert main([*command[1:], "--print-config"]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert resolved["name"] == "yarn"
    assert resolved["optim"]["learning_rate"] == 0.002
    assert resolved["train"]["steps"] == 7
