"""Numbers that no program can count with are refused in one line that names their option."""

import json
from pathlib import Path

import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main, parsers
from ctxext.model.config import LARGEST_SIZE, SHAPES
from ctxext.serialization import from_json, to_json
from support.command_line import argv

ROOT = Path(__file__).parents[2]


def error_of(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused command."""
    try:
        status = main(argv(line))
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "generate tiny-llama --prompt x --seed -1",
            "--seed: must be from 0 to 4294967295",
        ),
        ("generate tiny-llama --prompt x --seed 4294967296", "--seed: must be from 0 to"),
        (
            "generate tiny-llama --prompt x --max-new-tokens 99999999999",
            "new-tokens: must be at most",
        ),
        ("generate tiny-llama --prompt x --temperature inf", "--temperature: must be a finite"),
        ("generate tiny-llama --prompt x --top-p nan", "--top-p: must be a finite number, got nan"),
        ("rope none --theta inf", "--theta: must be a finite number, got inf"),
        ("rope none --head-dim 1e10", "--head-dim: must be a whole number, got '1e10'"),
        ("rope none --original 99999999999999999999", "--original: must be at most 2147483647"),
        ("eval tiny-llama --seq-len -1", "--seq-len: must be at least 1, got -1"),
        ("rope none --original 0", "--original: must be at least 1, got 0"),
        ("rope yarn --factor inf", "--factor must be a number, got 'inf'"),
        ("rope yarn --factor nan", "--factor must be a number, got 'nan'"),
        ("prepare x --tokenizer t --out o --held-out nan", "--held-out: must be a finite number"),
        ("run experiments/demo.py --dry-run --seed -1", "--seed must be from 0 to 4294967295"),
        ("run experiments/demo.py --dry-run --optim.learning-rate nan", "must be a number"),
    ],
)
def test_numbers_that_nothing_can_count_with(line: str, message: str, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert message in error_of(line, capsys)


def test_every_numeric_option_is_bounded():
    _, by_command = parsers()
    for parser in by_command.values():
        for action in parser._actions:
            assert action.type not in (int, float), action.option_strings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 1e10}, "head_dim cannot be '10000000000.0'"),
        ({"head_dim": 10**10}, f"head_dim must be positive and at most {LARGEST_SIZE}"),
        ({"rope_theta": -1.0}, "rope_theta must be a positive number, got -1.0"),
        ({"head_dim": 2**70}, "head_dim cannot be"),
        ({"head_dim": True}, "head_dim cannot be 'True'"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers cannot be '2'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps cannot be 'nan'"),
        ({"rope_theta": float("inf")}, "rope_theta cannot be 'inf'"),
        ({"eos_token_id": 1.5}, "eos_token_id cannot be '1.5'"),
    ],
)
def test_the_base_of_a_run_holds_numbers_of_a_model(changes, message, tmp_path, capsys):
    model = to_json(SHAPES["llama2-7b"])
    base = tmp_path / "run" / "base"
    base.mkdir(parents=True)
    (base / "scaling.json").write_text('{"__type__": "rope/unscaled"}')
    (base / "model.json").write_text(json.dumps(model | changes))
    error = error_of(f"rope none --init {tmp_path / 'run'}", capsys)
    assert message in error
    assert str(base / "model.json") in error


@pytest.mark.parametrize(
    "fields",
    [
        {"factor": float("inf")},
        {"factor": float("nan")},
        {"factor": True},
        {"factor": "4"},
        {"factor": 4.0, "beta_fast": None},
        {"factor": 4.0, "beta_fast": 10**400},
    ],
    ids=str,
)
def test_a_saved_scaling_holds_numbers(fields):
    with pytest.raises(ValueError, match=r"rope/yarn does not fit this version: \w+ cannot be"):
        from_json({"__type__": "rope/yarn", **fields})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": float("inf")}, "lora_alpha must be a positive number, got 'inf'"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a positive number, got 'nan'"),
        ({"lora_alpha": True}, "lora_alpha must be a positive number, got 'True'"),
        ({"r": 8.5}, "r must be a whole number from 1 to 16777216, got '8.5'"),
        ({"r": -1}, "r must be a whole number from 1"),
        ({"r": 1e10}, "r must be a whole number from 1"),
        ({"rank_pattern": {"q_proj": 8.5}}, "rank_pattern of q_proj must be a whole number"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern of q_proj must be a positive"),
        ({"layers_to_transform": [1.5]}, "layers_to_transform must be a list of numbers"),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["generate --prompt x", "prove"])
def test_an_adapter_holds_numbers(changes, message, command, tmp_path, capsys):
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(settings | changes))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    name, *rest = command.split()
    source = f"{TINY_LLAMA} --adapter {tmp_path}" if name == "generate" else str(tmp_path)
    if name == "prove":
        rest = ["--against", str(TINY_LLAMA)]
    error = error_of(" ".join([name, source, *rest]), capsys)
    assert message in error
    assert str(file) in error
