"""Methods and fields on the command line: one spelling, values by their types, suggestions."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest

from ctxext.cli.flags import Flag, parse_flags, parse_value
from ctxext.cli.main import main
from ctxext.cli.method_options import make_methods
from ctxext.cli.overrides import leaves, override
from ctxext.data import Stdlib
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment, Train
from ctxext.methods.custom import Custom
from ctxext.methods.pose import PoSE
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.trainable import LoRA
from ctxext.optim import Optim
from ctxext.parallel.mesh import Mesh

EXPERIMENT = Experiment(
    "x", Stdlib("train"), Optim(1e-3), Train(steps=3, seq_len=64, batch_size=2), rope=Yarn(2.0)
)


@dataclasses.dataclass(frozen=True)
class OfOneLength:
    """An evaluation whose length is not chosen."""


POSE = ["--max-position-embeddings", "64"]

SPELLINGS = [
    ("yarn", ["--factor", "8", "--beta-fast", "16"], Yarn(8.0, beta_fast=16.0)),
    ("yarn", ["--factor=8", "--beta_fast=16"], Yarn(8.0, beta_fast=16.0)),
    ("yarn", ["--rope.factor", "8", "--rope.beta-fast=16"], Yarn(8.0, beta_fast=16.0)),
    ("yarn", ["--factor", "8", "--no-truncate"], Yarn(8.0, truncate=False)),
    ("yarn", ["--factor", "8", "--truncate", "false"], Yarn(8.0, truncate=False)),
    ("yarn", ["--factor", "8", "--attention-factor", "none"], Yarn(8.0)),
    (
        "self-extend",
        ["--group-size", "4", "--attention.neighbor-window", "16"],
        SelfExtend(4, 16),
    ),
    ("pose", ["--max-position-embeddings", "128"], PoSE(128)),
]


@pytest.mark.parametrize(("name", "options", "method"), SPELLINGS)
def test_a_method_is_spelled_the_same_for_a_model_and_for_an_experiment(name, options, method):
    assert make_methods([name], options) == (method,)
    experiment = override(EXPERIMENT, options, methods=[name])
    assert method in (experiment.rope, experiment.attention, experiment.positions)


def test_the_lengths_of_all_evaluations_are_one_option():
    whole = (Retrieval((1024,), n=3), Perplexity((512, 1024), label="own"), OfOneLength())
    experiment = dataclasses.replace(EXPERIMENT, evals=whole)
    shorter = override(experiment, ["--evals.seq-lens", "256", "512"]).evals
    assert shorter[:2] == tuple(dataclasses.replace(e, seq_lens=(256, 512)) for e in whole[:2])
    assert shorter[2] is whole[2]
    with pytest.raises(ValueError, match=r"unknown option --evals.seq-lens"):
        override(EXPERIMENT, ["--evals.seq-lens", "128"])


def test_every_command_takes_the_plain_spelling(tmp_path: Path, capsys: pytest.CaptureFixture):
    file = tmp_path / "experiment.py"
    file.write_text(
        "from ctxext.data import Stdlib\nfrom ctxext.experiment import Experiment, Train\n"
        "from ctxext.optim import Optim\n"
        "experiment = Experiment('x', Stdlib('train'), Optim(1e-3), Train(1, 64, 1))\n"
        "def sweep():\n    yield experiment\n"
    )
    method = ["--method", "yarn", "--factor", "8"]
    for name in ("run", "train"):
        assert main([name, str(file), *method, "--print-config"]) == 0
        config = json.loads(capsys.readouterr().out)
        assert (config["rope"]["__type__"], config["rope"]["factor"]) == ("rope/yarn", 8.0)
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), *method, "--dry-run"]) == 0
    assert "--method yarn" in capsys.readouterr().out
    assert main(["rope", *method, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "yarn(factor=8)"
    for command in (
        ["run", str(file)],
        ["plan", str(file)],
        ["eval", "tiny-llama"],
        ["export", "tiny-llama", "--out", str(tmp_path / "o")],
        ["generate", "tiny-llama", "--prompt", "a"],
        ["prove", str(tmp_path)],
        ["rope"],
        ["sweep", str(file), "--out", str(tmp_path / "out")],
    ):
        assert main([*command, "--method", "yarn", "--factr", "8"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--factr" in line
        assert "did you mean --factor?" in line


def test_fields_go_to_every_method_that_has_them():
    both = make_methods(["yarn", "linear", "pose"], ["--factor", "4", *POSE])
    assert [getattr(method, "factor", None) for method in both] == [4.0, 4.0, None]
    experiment = override(
        EXPERIMENT,
        ["--factor", "4", "--rank", "2", "--train.steps", "9", *POSE],
        methods=["yarn", "lora", "pose"],
    )
    assert (experiment.rope, experiment.trainable) == (Yarn(4.0), LoRA(rank=2))
    assert (experiment.positions, experiment.train.steps) == (PoSE(64), 9)


def test_a_method_keeps_the_fields_it_shares_with_the_one_it_replaces():
    start = dataclasses.replace(EXPERIMENT, rope=Yarn(4.0, beta_fast=16.0))
    assert override(start, ["--factor", "8"], methods=["yarn"]).rope == Yarn(8.0)
    replaced = override(start, [], methods=["ntk"]).rope
    assert (type(replaced).__name__, replaced.factor) == ("NTK", 4.0)


def test_fields_are_replaced_together():
    """A mesh with -1 twice is refused, but only the final experiment has to be valid."""
    start = dataclasses.replace(EXPERIMENT, mesh=Mesh(data=-1))
    changed = override(start, ["--mesh.fsdp", "-1", "--mesh.data", "1", "--seed=7"])
    assert (changed.mesh, changed.seed) == (Mesh(data=1, fsdp=-1), 7)
    assert override(EXPERIMENT, ["--train.steps", "5", "--train.steps=6"]).train.steps == 6
    kept = override(EXPERIMENT, ["--train.keep-best", "loss@64", "--train.eval-every", "5"])
    assert (kept.train.keep_best, kept.train.eval_every) == ("loss@64", 5)
    chosen = override(EXPERIMENT, ["--train.eval-set", "passkey", "loss"]).train.eval_set
    assert chosen == ("passkey", "loss")
    assert override(EXPERIMENT, ["--optim.rates", '[["lm_head", 0.5]]']).optim.rates == (
        ("lm_head", 0.5),
    )
    assert override(EXPERIMENT, ["--init", "none"]).init is None
    assert override(EXPERIMENT, []) == EXPERIMENT
    assert {"train.seq_len", "rope.factor", "export.dtype", "init", "seed"} <= set(
        leaves(EXPERIMENT)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.stps", "4"], r"unknown option --train.stps; did you mean --train.steps\?"),
        (["--factor", "4"], r"unknown option --factor; did you mean --rope.factor\?"),
        (["--zzz", "4"], "unknown option --zzz; --print-config shows"),
        (["--quantize", "nf4"], "--quantize belongs to --method lora, and .* trains full; give"),
        (["--trainable.quantize", "nf4"], "--trainable.quantize belongs to --method lora"),
        (["--n", "2"], "--n belongs to --method last-layers, and .* trains full; give"),
        (["--train.steps", "four"], "--train.steps must be a whole number, got 'four'"),
        (["--train.steps"], "--train.steps needs a value: a whole number"),
        (["--train.steps", "1", "2"], "--train.steps takes one value, got 1 2"),
        (["--train.dtype", "f8"], "--train.dtype must be float32 or bfloat16, got 'f8'"),
        (["--allow-shorter", "maybe"], "--allow-shorter must be true or false, got 'maybe'"),
        (
            ["--train.keep-best", "loss@64"],
            "train.keep_best 'loss@64' is measured .*train.eval_every",
        ),
        (["--rope", "yarn"], "--rope is not a single value"),
        (["--evals", "ppl"], "--evals is not a single value"),
        (["--model.head-dim", "4"], "this experiment has no model"),
        (["4"], "unexpected argument '4'"),
        (["--train.steps", "-1"], "train.steps must not be negative"),
    ],
)
def test_wrong_fields_of_an_experiment_are_one_clear_line(arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        override(EXPERIMENT, arguments)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        (
            "last-layers",
            ["--n", "1", "--quantize", "nf4"],
            "--quantize belongs to --method lora, and --method last-layers trains without it; ",
        ),
        ("full", ["--quantize", "nf4"], "lora, and --method full trains without it"),
        ("lora", ["--trainable.n", "3"], "last-layers, and --method lora trains without it"),
    ],
)
def test_a_field_of_another_way_to_train_names_both(
    method: str, arguments: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        override(EXPERIMENT, arguments, methods=[method])


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["yarn"], [], "'yarn' needs factor"),
        (["yarn"], ["--factor", "four"], "--factor must be a number, got 'four'"),
        (["yarn"], ["--fctr", "4"], r"unknown option --fctr; did you mean --factor\?"),
        (["none"], ["--factor", "2"], "unknown option --factor; none has no fields; a method with"),
        (["linear"], ["--zzz", "4"], "the fields of these methods are --factor"),
        ([], ["--zzz", "4"], "after --method NAME"),
        (["yrn"], [], "did you mean 'yarn'"),
        (["custom"], ["--divisors", "a"], "--divisors must be numbers"),
    ],
)
def test_wrong_fields_of_a_method_are_one_clear_line(
    names: list[str], arguments: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        make_methods(names, arguments)


def test_vectors_are_numbers_json_or_a_file(tmp_path: Path):
    (tmp_path / "list.json").write_text("[1, 2.5]")
    (tmp_path / "object.json").write_text('{"divisors": [1, 2.5], "other": 3}')
    expected = (Custom((1.0, 2.5), 1.0),)
    for values in (
        ["1", "2.5"],
        ["[1, 2.5]"],
        [str(tmp_path / "list.json")],
        [str(tmp_path / "object.json")],
    ):
        options = ["--divisors", *values, "--attention-factor", "1"]
        assert make_methods(["custom"], options) == expected
    (tmp_path / "object.json").write_text('{"other": [1, 2.5]}')
    with pytest.raises(ValueError, match="--divisors must be numbers"):
        make_methods(["custom"], ["--divisors", str(tmp_path / "object.json")])


@pytest.mark.parametrize(
    ("annotation", "texts", "value"),
    [
        (int | float, ["3"], 3),
        (int | float, ["3.5"], 3.5),
        (str | None, ["none"], None),
        (str | None, ["7"], "7"),
        (int | tuple[int, ...] | None, ["[1, 2]"], (1, 2)),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (tuple[str, ...], ["[]"], ()),
        (tuple[int, float], ["1", "2"], (1, 2.0)),
        (Literal["a", 2], ["2"], 2),
        (bool, [], True),
    ],
)
def test_values_by_their_type(annotation, texts: list[str], value):
    parsed = parse_value(Flag("x", tuple(texts)), annotation)
    assert parsed == value
    assert type(parsed) is type(value)


def test_flags_keep_their_order_and_values():
    assert parse_flags(["--a=1", "--b-c", "2", "3", "--d"]) == [
        Flag("a", ("1",)),
        Flag("b_c", ("2", "3")),
        Flag("d", ()),
    ]
