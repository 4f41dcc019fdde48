"""Every experiment file loads, explains itself, and its dry run resolves shapes and steps without
allocating."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.experiment import Experiment, load_experiment
from ctxext.methods import Linear, Yarn
from ctxext.model.config import SHAPES, LlamaConfig
from ctxext.model.trainable import Full
from ctxext.serialization import from_json, to_json

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = sorted(FOLDER.glob("*.py"))
# Published parameter counts of the Llama 2 family.
PARAMETERS = {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}
# Steps, tokens per step and method of each recipe, as in its docstring.
RECIPES = {
    "llama2_7b_pi_8k": (1000, 64 * 8192, Linear(factor=2.0)),
    "llama2_7b_longlora_8k": (1000, 64 * 8192, Linear(factor=2.0)),
    "llama2_7b_yarn_8k": (400, 64 * 8192, Yarn(factor=2.0)),
    "llama2_7b_yarn_16k": (400, 64 * 16384, Yarn(factor=4.0)),
    "llama2_13b_yarn_8k": (400, 64 * 8192, Yarn(factor=2.0)),
    "llama2_70b_yarn_8k": (400, 64 * 8192, Yarn(factor=2.0)),
}


# Shape, steps, tokens per step, window, learning rate and warm-up of the other papers' recipes.
OTHERS = {
    "llama1_7b_pi_8k": ("llama1-7b", 1000, 64 * 8192, 8192, 2e-5, 20),
    "llama1_7b_pose_16k": ("llama1-7b", 1000, 64 * 2048, 2048, 2e-5, 10),
    "llama2_7b_abf_16k": ("llama2-7b", 3000, 128 * 16384, 16384, 2e-5, 20),
    "llama2_7b_pi_32k": ("llama2-7b", 1000, 64 * 32768, 32768, 2e-5, 20),
    "llama3_8b_128k": ("llama3-8b", 400, 64 * 131072, 131072, 2e-5, 20),
    "llama3_8b_prolong_64k": ("llama3-8b", 5000, 64 * 65536, 65536, 1e-5, 500),
}
# (evaluation, tokens) -> perplexity, as published.
EXPECTED = {
    "llama1_7b_pi_8k": {("ppl:pi", 2048): 2.79, ("ppl:pi", 4096): 2.57, ("ppl:pi", 8192): 2.39},
    "llama1_7b_pose_16k": {
        ("ppl:pi", 2048): 2.95,
        ("ppl:pi", 4096): 2.74,
        ("ppl:pi", 8192): 2.61,
        ("ppl:pi", 16384): 2.60,
    },
    "llama2_7b_yarn_8k": {("ppl:truncate", 8192): 3.35},
    "llama2_7b_pi_8k": {("ppl:truncate", 8192): 3.34},
    "llama2_7b_pi_32k": {("ppl:truncate", 8192): 3.50, ("ppl:truncate", 32768): 2.64},
    "llama2_7b_longlora_8k": {("ppl:longlora", 8192): 2.78},
}


def tiny_window() -> tuple[LlamaConfig, int]:
    return LlamaConfig(1024, 64, 128, 2, 2, 1, 32, 1e-5, 1e4, 256), 256


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_loads_and_explains_itself(path: Path, tmp_path: Path, monkeypatch) -> None:
    if path.stem == "smollm2_study":  # asks for its texts, which are then in their places
        for part in ("train", "heldout", "heldout-long"):
            (tmp_path / "runs" / "austen" / part).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
    experiment = load_experiment(path, tiny_window)
    assert isinstance(experiment, Experiment)
    assert from_json(to_json(experiment)) == experiment
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"experiments/{path.name}" in docstring, "the docstring does not show the command"


def test_every_llama_recipe_is_checked_below() -> None:
    assert {path.stem for path in FILES if path.stem.startswith("llama")} == {*RECIPES, *OTHERS}


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_expected_numbers_are_the_published_ones(name: str) -> None:
    expect = load_experiment(FOLDER / f"{name}.py").expect
    assert {(x.evaluation, x.seq_len): x.value for x in expect} == EXPECTED.get(name, {})


@pytest.mark.parametrize("name", OTHERS)
def test_recipe_of_another_paper(name: str) -> None:
    experiment = load_experiment(FOLDER / f"{name}.py")
    shape, steps, tokens, seq_len, rate, warmup = OTHERS[name]
    train, optim = experiment.train, experiment.optim
    assert experiment.model == SHAPES[shape] and train.batch_size % experiment.mesh.fsdp == 0
    assert (train.steps, train.batch_size * train.accumulate * train.seq_len, train.seq_len) == (
        steps,
        tokens,
        seq_len,
    )
    assert (optim.learning_rate, optim.warmup_steps, optim.b1, optim.b2) == (
        rate,
        warmup,
        0.9,
        0.95,
    )
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    flops = 6 * SHAPES[shape].num_parameters * steps * tokens
    stated = re.search(r"=\s+(\d\.\de\d\d)\s+FLOPs", docstring)
    hours = re.search(r"([\d.]+)\s+device\s+hours", docstring)
    assert stated is not None and float(stated[1]) == pytest.approx(flops, rel=0.05)
    assert hours is not None and float(hours[1]) == pytest.approx(
        flops / (0.4 * 989e12) / 3600, rel=0.05
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    experiment = load_experiment(FOLDER / f"{name}.py")
    steps, tokens, method = RECIPES[name]
    train = experiment.train
    assert (train.steps, experiment.rope) == (steps, method)
    assert train.batch_size * train.accumulate * train.seq_len == tokens
    assert experiment.optim.learning_rate == 2e-5 and experiment.optim.warmup_steps == 20
    assert (experiment.optim.b1, experiment.optim.b2, experiment.optim.weight_decay) == (
        0.9,
        0.95,
        0.0,
    )
    assert experiment.model is not None
    window, factor = experiment.model.max_position_embeddings, method.factor
    assert (window, train.seq_len) == (4096, int(window * factor))
    assert experiment.model.num_parameters == PARAMETERS[name.split("_")[1]]
    # The estimate: 6 N FLOPs per token, 4 N where frozen kernels need no weight gradient.
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    flops = (
        (6 if experiment.trainable == Full() else 4)
        * experiment.model.num_parameters
        * steps
        * tokens
    )
    stated = float(re.search(r"=\s+(\d\.\de\d\d)\s+FLOPs", docstring)[1])  # pyright: ignore[reportOptionalSubscript]
    assert stated == pytest.approx(flops, rel=0.05)
    hours = float(re.search(r"([\d.]+)\s+device\s+hours", docstring)[1])  # pyright: ignore[reportOptionalSubscript]
    assert hours == pytest.approx(flops / (0.4 * 989e12) / 3600, rel=0.05)


DRY_RUN = """
import sys
from ctxext.cli.main import main
sys.argv = ["ctxext", "run", sys.argv[1], "--dry-run"]  # its data is missing
code = main()
status = open("/proc/self/status").read()  # ru_maxrss would include the parent process
print("peak GiB", int(status.split("VmHWM:")[1].split()[0]) / 2**20)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "name",
    [
        name if name == "llama2_70b_yarn_8k" else pytest.param(name, marks=pytest.mark.check)
        for name in (*RECIPES, *OTHERS)
    ],
)
def test_dry_run_allocates_nothing(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(FOLDER / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    numbers = set(re.findall(r"\d[\d,]*", done.stdout.replace(",", "")))
    experiment = load_experiment(FOLDER / f"{name}.py")
    assert experiment.model is not None
    assert {str(experiment.model.num_parameters), str(experiment.train.steps)} <= numbers, (
        done.stdout
    )
    assert float(done.stdout.split("peak GiB")[1]) < 1.5
    assert not list(tmp_path.iterdir()), "a dry run wrote something"


@pytest.mark.parametrize("name", [*RECIPES, *OTHERS])
def test_plan_counts_the_step(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(FOLDER / f"{name}.py"), "--json"]) == 0
    plan, experiment = json.loads(capsys.readouterr().out), load_experiment(FOLDER / f"{name}.py")
    train, mesh = experiment.train, experiment.mesh
    assert experiment.model is not None
    assert plan["devices"] == mesh.fsdp * mesh.seq * mesh.tensor
    assert plan["tokens_per_step"] == train.batch_size * train.accumulate * train.seq_len
    # 2 N operations per token, plus the visible half of the scores: 2 x 2 x T / 2 x F H per layer
    heads = (
        experiment.model.num_hidden_layers
        * experiment.model.num_attention_heads
        * experiment.model.head_dim
    )
    table = experiment.model.vocab_size * experiment.model.hidden_size  # the embedding is looked up
    forward = 2 * (experiment.model.num_parameters - table) + 2 * train.seq_len * heads
    assert plan["flops"]["forward"] == pytest.approx(forward * plan["tokens_per_step"], rel=0.02)
