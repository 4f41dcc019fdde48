"""A TOML file of overrides: the same experiments as those built in Python, and one-line errors."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.cli.sweep_file import SweepFile
from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Train, load_experiment
from ctxext.methods.ntk import NTK
from ctxext.methods.yarn import Yarn
from ctxext.model.trainable import LoRA
from ctxext.optim import Optim

BASE = Experiment("base", Stdlib("train"), Optim(1e-3), Train(steps=3, seq_len=64, batch_size=2))
SOURCE = """
from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Train
from ctxext.optim import Optim

def experiment(config):
    length = 64 if config.hidden_size else 0
    return Experiment("base", Stdlib("train"), Optim(1e-3), Train(3, length, 2), init=None)
"""


@pytest.fixture
def write(tmp_path: Path):
    (tmp_path / "base.py").write_text(SOURCE)

    def write(text: str) -> Path:
        (tmp_path / "sweep.toml").write_text(text)
        return tmp_path / "sweep.toml"

    return write


def experiments(file: Path) -> dict[str, Experiment]:
    return SweepFile.read(file).experiments(lambda path, init: BASE)


def changed(name: str, **fields) -> Experiment:
    return dataclasses.replace(BASE, name=name, **fields)


def test_trials_and_a_grid(write):
    file = write(
        """
        experiment = "base.py"
        [options]
        method = "yarn"
        factor = 4
        train.steps = 7
        [trials.plain]
        [trials.adapted]
        method = ["ntk", "lora"]
        rank = 2
        targets = ["q_proj", "v_proj"]
        "train.seq-len" = 128
        [grid]
        optim.learning-rate = [1e-4, 0.5]
        seed = [0, 1]
        """
    )
    train = dataclasses.replace(BASE.train, steps=7)
    lora = LoRA(rank=2, targets=("q_proj", "v_proj"))
    expected = [
        changed(f"{name}-learning-rate-{rate}-seed-{seed}", optim=Optim(rate), seed=seed, **fields)
        for name, fields in (
            ("plain", {"rope": Yarn(4.0), "train": train}),
            (
                "adapted",
                {
                    "rope": NTK(4.0),
                    "trainable": lora,
                    "train": dataclasses.replace(train, seq_len=128),
                },
            ),
        )
        for rate in (0.0001, 0.5)
        for seed in (0, 1)
    ]
    assert experiments(file) == {experiment.name: experiment for experiment in expected}


def test_a_file_without_trials_is_one_experiment(write):
    only = experiments(write('experiment = "base.py"\n[options]\nseed = 5\nbos = false'))
    assert only == {"base": changed("base", seed=5, bos=False)}
    grid = experiments(
        write('experiment = "base.py"\n[grid]\nmethod = [["yarn", "lora"]]\nfactor = [2, 4]')
    )
    assert [e.rope for e in grid.values()] == [Yarn(2.0), Yarn(4.0)]
    assert list(grid) == ["method-yarn-lora-factor-2", "method-yarn-lora-factor-4"]


def test_the_file_of_the_docs_is_one(write):
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    trials = experiments(write(text))
    assert len(trials) == 12
    one = trials["short-learning-rate-1e-05-seed-0"]
    assert (one.init, one.rope, one.train.seq_len) == ("meta-llama-dir", Yarn(4.0), 4096)
    assert trials["adapters-learning-rate-2e-05-seed-2"].trainable == LoRA(rank=16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a =", "sweep.toml is not valid TOML: "),
        (
            "[options]\nseed = 1",
            'sweep.toml: it names no experiment; begin with: experiment = "F',
        ),
        ('experiment = "base.py"\n[opt]', "sweep.toml: there is no 'opt' in such a file; did you"),
        ('experiment = "base.py"\n[optoins]', "there is no 'optoins' in such a file; did you mean"),
        ('experiment = "base.py"\ngrid = 1', "grid must be a table, as [grid] begins one"),
        ('experiment = "base.py"\n[grid]\nseed = 1', "grid.seed must be a list of values, as [1, "),
        ('experiment = "base.py"\n[trials]\n"a/b" = {}', "trial 'a/b': a name has letters, digits"),
        (
            'experiment = "base.py"\n[trials.one]\ntrain.stesp = 1',
            "sweep.toml, trial one: unknown option --train.stesp; did you mean --train.steps?",
        ),
        (
            'experiment = "base.py"\n[trials.one]\ntrain.steps = "many"',
            "sweep.toml, trial one: --train.steps must be a whole number, got 'many'",
        ),
        ('experiment = "base.py"\n[options]\nmethod = 4', "method must be a name or a list of nam"),
        ('experiment = "none.py"', "none.py does not exist; give an experiment file"),
    ],
)
def test_what_is_wrong_is_one_line(text, message, write, capsys):
    assert main(["run", str(write(text)), "--print-config"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_commands_take_the_file(write, capsys, tmp_path):
    file = write('experiment = "base.py"\n[options]\ninit = "tiny-llama"\n[grid]\nseed = [3, 4]')

    def config(*options: str) -> dict:
        assert main(["run", str(file), *options, "--print-config"]) == 0
        return json.loads(capsys.readouterr().out)

    chosen = config("--trial", "seed-4", "--train.steps", "9")
    assert (chosen["name"], chosen["seed"], chosen["init"]) == ("seed-4", 4, "tiny-llama")
    assert chosen["train"]["steps"] == 9
    assert main(["run", str(file), "--print-config"]) == 2
    assert "has 2 trials: choose one with --trial NAME" in capsys.readouterr().err
    assert main(["run", str(file), "--trial", "seed-5", "--print-config"]) == 2
    assert "has no trial 'seed-5'; did you mean 'seed-" in capsys.readouterr().err
    command = ["sweep", str(file), "--out", str(tmp_path / "out"), "--wandb-yaml"]
    assert main(command) == 0
    assert '    values: ["seed-3", "seed-4"]' in capsys.readouterr().out


def test_the_config_of_a_run_is_an_experiment(write, capsys, tmp_path):
    file = write('experiment = "base.py"\n[options]\nmethod = "yarn"\nfactor = 4')
    assert main(["run", str(file), "--print-config"]) == 0
    saved = tmp_path / "config.json"
    saved.write_text(capsys.readouterr().out)
    assert load_experiment(saved) == changed("base", rope=Yarn(4.0))
    assert main(["train", str(saved), "--train.steps", "200", "--print-config"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.pop("train") == json.loads(saved.read_text())["train"] | {"steps": 200}
    assert again == {k: v for k, v in json.loads(saved.read_text()).items() if k != "train"}
    # A sweep may begin with it.
    file = write('experiment = "config.json"\n[grid]\nfactor = [2]')
    assert main(["run", str(file), "--print-config", "--method", "yarn"]) == 2
    assert "unknown option --factor; did you mean --rope.factor?" in capsys.readouterr().err
    for content, message in (
        ('{"model_type": "llama"}', "is not the config.json of a run; give that of a run"),
        ('{"__type__": "experiment", "name": "x"}', "does not fit this version"),
        (
            saved.read_text().replace("rope/yarn", "mine.py:Half"),
            "uses code from mine.py; pass --trust-run",
        ),
    ):
        saved.write_text(content)
        assert main(["run", str(saved), "--print-config"]) == 2
        assert message in capsys.readouterr().err


def test_a_dry_run_finds_the_directory_of_another_experiment(write, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    file = write('experiment = "base.py"\n[options]\ninit = "tiny-llama"')
    assert main(["run", str(file), "--print-config"]) == 0
    (tmp_path / "run" / "config.json").write_text(capsys.readouterr().out)
    command = ["run", str(file), "--run-dir", str(tmp_path / "run"), "--dry-run", "--seed", "1"]
    assert main(command) == 2
    assert "belongs to another experiment: seed is 0 there and 1 here" in capsys.readouterr().err
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "notes").write_text("mine")
    assert main(command) == 2
    assert "exists and is not a run directory" in capsys.readouterr().err
