"""A run directory belongs to one experiment, records its provenance, and can be resumed."""

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from ctxext import pipeline
from ctxext.files import append_jsonl, read_jsonl
from ctxext.methods.linear import Linear
from ctxext.methods.yarn import Yarn
from ctxext.rundir import DIRECTORIES, RunDir
from ctxext.serialization import from_json, read_saved, to_json
from ctxext.tracking.sink import JsonlSink
from support.tiny_train import CONFIG, tiny_experiment


@pytest.fixture
def experiment(tmp_path):
    return tiny_experiment(tmp_path / "texts")


def test_a_new_directory_holds_the_experiment(tmp_path, experiment):
    file = tmp_path / "mine.py"
    file.write_text("experiment = 1\n")
    run = RunDir(tmp_path / "run").open(experiment, file)
    assert from_json(json.loads(run.config_file.read_text())) == experiment
    assert (run.path / "experiment.py").read_text() == "experiment = 1\n"
    before = run.config_file.stat().st_mtime_ns
    assert run.open(experiment).config_file.stat().st_mtime_ns == before


def test_steps_may_grow_and_not_shrink(tmp_path, experiment):
    run = RunDir(tmp_path / "run").open(experiment)
    longer = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=60))
    run.open(longer)
    assert json.loads(run.config_file.read_text())["train"]["steps"] == 60
    with pytest.raises(ValueError, match="60 steps and cannot shrink to 6"):
        run.open(experiment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope": Linear(4.0)}, r"rope\.factor is 2\.0 there and 4\.0 here"),
        ({"rope": Yarn(2.0)}, "rope is linear there and yarn here"),
        ({"seed": 3}, "seed is 0 there and 3 here"),
        ({"model": None}, "model is model there and null here"),
        ({"name": "other"}, 'name is "tiny" there and "other" here'),
    ],
)
def test_another_experiment_is_refused_by_its_first_difference(
    tmp_path, experiment, change, message
):
    run = RunDir(tmp_path / "run").open(experiment)
    before = run.config_file.read_bytes()
    message = f"belongs to another experiment: {message}; choose another --run-dir"
    with pytest.raises(ValueError, match=message):
        run.open(dataclasses.replace(experiment, **change))
    assert run.config_file.read_bytes() == before


def test_a_directory_of_other_files_is_refused(tmp_path, experiment):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not a run directory"):
        RunDir(tmp_path).open(experiment)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_base_is_written_for_loading(tmp_path, experiment):
    run = RunDir(tmp_path / "run").open(experiment)
    files = {"tokenizer.model": b"\x00pieces"}
    run.write_base(CONFIG, Linear(2.0), files, declared=64, base_scaling=Linear(1.0))
    assert from_json(json.loads((run.base / "model.json").read_text())) == CONFIG
    assert from_json(json.loads((run.base / "scaling.json").read_text())) == Linear(2.0)
    assert (run.base / "tokenizer.model").read_bytes() == b"\x00pieces"
    assert run.about() == {}
    about = {"license": "apache-2.0"}
    run.write_base(CONFIG, Linear(2.0), files, declared=64, base_scaling=Linear(1.0), about=about)
    assert run.about() == about
    run.about_file.write_text('{"license": 2}')
    with pytest.raises(ValueError, match="about.json is damaged"):
        run.about()


def test_provenance_holds_versions_and_refuses_changed_data(tmp_path, experiment):
    run = RunDir(tmp_path / "run").open(experiment)
    run.record({"data": {"sha256": "a"}, "device": "cpu"}, fixed=("data",))
    provenance = json.loads(run.provenance_file.read_text())
    packages = {"python", "jax", "flax", "optax", "orbax-checkpoint", "ctxext"}
    assert packages <= set(provenance["versions"])
    assert provenance["device"] == "cpu"
    assert "git_commit" in provenance
    # Another device is recorded, not refused.
    run.record({"data": {"sha256": "a"}, "device": "gpu"}, fixed=("data",))
    assert json.loads(run.provenance_file.read_text())["device"] == "gpu"
    with pytest.raises(ValueError, match=r'other data: data\.sha256 is "a" there and "b" here'):
        run.record({"data": {"sha256": "b"}, "device": "gpu"}, fixed=("data",))


@pytest.mark.parametrize("content", ["[]", "{}", '{"base": 3}', '{"base": null}'])
def test_a_provenance_without_the_base_is_named(content, tmp_path, experiment):
    run = RunDir(tmp_path / "run").open(experiment)
    run.provenance_file.write_text(content)
    with pytest.raises(ValueError, match="run/provenance.json does not hold the checksum of the b"):
        run.base_checksum()


@pytest.mark.parametrize("key", ["steps", "seq_len", "dtype"])
def test_settings_without_a_key_are_named(key, tmp_path, experiment):
    run = RunDir(tmp_path / "run").open(experiment)
    settings = json.loads(run.config_file.read_text())
    del settings["train"][key]
    run.config_file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"run/config.json is damaged: it has no train.{key};"):
        run.settings()


def test_a_value_of_another_kind_is_named(tmp_path, experiment):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"rope": to_json(Linear(2.0)), "seed": 3}))
    assert read_saved(file, Linear, key="rope") == Linear(2.0)
    with pytest.raises(ValueError, match="config.json holds '3' under seed, which is of another k"):
        read_saved(file, Linear, key="seed")


def test_metrics_after_the_resumed_step_are_dropped(tmp_path, experiment):
    run = RunDir(tmp_path / "run").open(experiment)
    run.rewind(0)
    for step in range(1, 6):
        append_jsonl(run.metrics_file, {"step": step, "loss": 1 / step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 6, "lo')  # torn by the crash
    run.rewind(3)
    assert [row["step"] for row in read_jsonl(run.metrics_file)] == [1, 2, 3]
    append_jsonl(run.metrics_file, {"step": 4})
    assert [row["step"] for row in read_jsonl(run.metrics_file)] == [1, 2, 3, 4]


def _hold(path, held, done):
    """Hold the lock of a run directory until `done` is set."""
    with RunDir(path).lock():
        held.set()
        done.wait(60)


def test_two_processes_do_not_run_in_one_directory(tmp_path, experiment):
    """The second one is told who holds it, and changes nothing: not even a longer run's steps."""
    run = RunDir(tmp_path / "run").open(experiment)
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    done = context.Event()
    other = context.Process(target=_hold, args=(run.path, held, done))
    other.start()
    try:
        assert held.wait(60)
        holder = rf"process {other.pid} on [\w.-]+ since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
        message = f"run is in use by {holder} .*; wait for it, stop it, or choose another --run-dir"
        with pytest.raises(ValueError, match=message), run.lock():
            pass
        before = run.config_file.read_bytes()
        train = dataclasses.replace(experiment.train, steps=60)
        longer = dataclasses.replace(experiment, train=train)
        with pytest.raises(ValueError, match=message):
            pipeline.open_run(longer, run.path)
        assert run.config_file.read_bytes() == before
    finally:
        done.set()
        other.join(60)
    with run.lock(), run.lock():
        with pytest.raises(ValueError, match="is in use by"), RunDir(run.path).lock():
            pass
    with RunDir(run.path).lock():
        pass


LEFT = (".lock", "experiment.py", ".experiment.py.0123abcd.89ef0123", ".config.json.1.2")


@pytest.mark.parametrize("left", [LEFT[:1], LEFT[:2], LEFT])
def test_a_creation_that_was_killed_is_finished_by_the_next_one(tmp_path, experiment, left):
    """Whatever a kill before config.json leaves, and whatever the experiment is by then."""
    path = tmp_path / "run"
    path.mkdir()
    for name in left:
        (path / name).write_text("torn")
    file = tmp_path / "mine.py"
    file.write_text("experiment = 2\n")
    run = RunDir(path).open(experiment, file)
    assert from_json(json.loads(run.config_file.read_text())) == experiment
    assert (path / "experiment.py").read_text() == "experiment = 2\n"


def test_a_killed_creation_leaves_what_the_next_one_knows(tmp_path, experiment, monkeypatch):
    """Killed before each of its writes, as SIGKILL would: nothing is cleaned up."""
    file = tmp_path / "mine.py"
    file.write_text("experiment = 1\n")
    for number, replace in enumerate(("experiment.py", "config.json")):
        path = tmp_path / str(number)

        def killed(source, target, name=replace, real=os.replace):
            if Path(target).name == name:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("ctxext.files.os.replace", killed)
            patch.setattr("ctxext.files._remove", lambda path: None)
            with pytest.raises(KeyboardInterrupt):
                RunDir(path).open(experiment, file)
        assert not (path / "config.json").exists()
        assert any(name.name.startswith(f".{replace}.") for name in path.iterdir())
        RunDir(path).open(experiment, file)
        assert sorted(os.listdir(path)) == [".lock", "config.json", "experiment.py"]


@pytest.mark.parametrize("names", [("experiment.py",), (".lock", "experiment.py", "notes.txt")])
def test_the_files_of_others_are_not_taken_for_what_a_killed_creation_left(
    tmp_path, experiment, names
):
    path = tmp_path / "run"
    path.mkdir()
    for name in names:
        (path / name).write_text("theirs")
    with pytest.raises(ValueError, match="exists and is not a run directory"):
        RunDir(path).open(experiment)
    assert {file.read_text() for file in path.iterdir()} == {"theirs"}
    assert len(list(path.iterdir())) == len(names)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_linked_directory_in_a_run_is_refused_before_anything_is_written(
    tmp_path, experiment, name
):
    """A stranger's run directory does not decide where files go."""
    outside = tmp_path / "outside"
    outside.mkdir()
    run = RunDir(tmp_path / "run").open(experiment)
    link = run.path / name.replace("*", "4")
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(ValueError, match=f"{link} is a link to .*nothing is written through links"):
        run.open(experiment)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("line", ['{"loss": 1.5}', '{"step": null}', "[4]"])
def test_a_row_of_metrics_without_a_step_is_named(tmp_path, experiment, line):
    run = RunDir(tmp_path / "run").open(experiment)
    content = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'
    run.metrics_file.write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2, has no step.*restore the file"):
        run.rewind(2)
    assert run.metrics_file.read_text() == content


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "provenance.json", ".lock"])
def test_a_linked_file_in_a_run_is_refused_and_left_alone(tmp_path, experiment, name):
    victim = tmp_path / "victim"
    run = RunDir(tmp_path / "run").open(experiment)
    row = {"step": 1, "versions": {}}
    append_jsonl(run.metrics_file, row)
    (run.path / name).unlink(missing_ok=True)
    victim.write_text(json.dumps(row) + "\n")
    (run.path / name).symlink_to(victim)
    before = victim.read_bytes()
    with pytest.raises(ValueError, match=f"{name} is a link to|belongs to another experiment"):
        run.open(experiment)
        run.rewind(0)
        JsonlSink(run.metrics_file).log(row)
        run.record({})
        with run.lock():
            pass
    assert victim.read_bytes() == before
