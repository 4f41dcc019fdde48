"""Every command on real directories; bad input is one line, exits with 2 and leaves nothing."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import ctxext
from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.evals.record import read_records
from ctxext.files import read_jsonl
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params
from ctxext.rope import Unscaled
from ctxext.tokenization.tokenizer import load_tokenizer
from support.hf_files import write_hf

CONFIG = LlamaConfig(1024, 64, 96, 2, 4, 2, 16, 1e-5, 1e4, 64)
EXPERIMENT = """
from ctxext import tasks
from ctxext.data import Mix, Stdlib, Synthetic
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment, Train
from ctxext.methods import Linear, SelfExtend, Yarn
from ctxext.optim import Optim
from ctxext.rope import Unscaled

experiment = Experiment(
    name="cli-test", init={init!r}, rope=Yarn(factor=4.0),
    data=Mix(((0.5, Stdlib("train")), (0.5, Synthetic(tasks.Passkey())))),
    optim=Optim(learning_rate=1e-3),
    train=Train(steps=3, seq_len=128, batch_size=2, checkpoint_every=2, log_every=1),
    evals=(
        Retrieval(seq_lens=(64, 256), depths=(0.0, 1.0), n=2),
        Perplexity(seq_lens=(64, 256), num_documents=2, target_tokens=32),
    ),
    zero_shot=(Unscaled(), Linear(4.0), SelfExtend(4, 16)),
)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "hf"
    params = jax.tree.map(np.asarray, init_params(CONFIG, 0))
    write_hf(path, CONFIG, params, Unscaled(), load_tokenizer(TINY_LLAMA), dtype="float32")
    return path


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(experiment file, run directory) of `ctxext run`."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "experiment.py"
    file.write_text(EXPERIMENT.format(init=str(base)))
    assert main(["run", str(file), "--run-dir", str(folder / "run"), "--no-wandb"]) == 0
    return file, folder / "run"


def data(capsys: pytest.CaptureFixture, *argv: str) -> dict:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    """The one line on stderr of a refused command."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ctxext: ")]
    assert len(lines) == 1
    return lines[0]


def test_run_writes_everything(finished: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    file, run = finished
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.json",
        "experiment.py",
        "metrics.jsonl",
        "records.jsonl",
        "checkpoints",
        "base",
        "export",
        "provenance.json",
    }
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3]
    rows = read_records(run / "records.jsonl")
    methods = {row.model.label for row in rows}
    assert len(methods) == 4
    assert len(rows) == 4 * (2 * 2 * 2 + 2 * 2)
    proof = json.loads((run / "export" / "proof.json").read_text())
    assert proof["equal"]
    assert "numpy" in [reader["reader"] for reader in proof["readers"]]
    # The same command again finds everything done: no row is added and the tables are the same.
    again = data(capsys, "run", str(file), "--run-dir", str(run), "--no-wandb")
    assert read_records(run / "records.jsonl") == rows
    assert {cell["method"] for cell in again["retrieval"]} == methods


@pytest.mark.check
def test_more_steps_are_exported_again(finished: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    file, run = finished
    shutil.copytree(run, tmp_path / "run")
    before = (tmp_path / "run" / "export" / "model.safetensors").read_bytes()
    summary = data(
        capsys,
        "run",
        str(file),
        "--run-dir",
        str(tmp_path / "run"),
        "--no-wandb",
        "--train.steps",
        "4",
    )
    assert summary["proof"]["equal"]
    assert not summary["proof"]["weights_that_differ"]
    assert (tmp_path / "run" / "export" / "model.safetensors").read_bytes() != before


def test_a_run_without_training_keeps_its_attention(
    finished: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    text = (
        finished[0]
        .read_text()
        .replace("rope=Yarn(factor=4.0)", "attention=SelfExtend(4, 16), export=None")
    )
    (tmp_path / "zero.py").write_text(text)
    argv = [
        str(tmp_path / "zero.py"),
        "--run-dir",
        str(tmp_path / "run"),
        "--no-wandb",
        "--train.steps",
        "0",
    ]
    cells = data(capsys, "run", *argv)["retrieval"]
    assert "self-extend(group_size=4, neighbor_window=16), zero-shot" in {
        cell["method"] for cell in cells
    }


def test_eval_report_and_python_agree(finished: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    _, run = finished
    argv = ["eval", str(run), "--evals", "passkey", "--seq-len", "64", "--out", str(tmp_path)]
    summary = data(capsys, *argv)
    assert [cell["seq_len"] for cell in summary["retrieval"]] == [64]
    assert data(capsys, "report", str(tmp_path)) == summary
    main(["report", str(tmp_path)])
    assert "passkey" in capsys.readouterr().out


@pytest.mark.check
def test_every_command_opens_the_chosen_checkpoint(base: Path, tmp_path: Path, capsys) -> None:
    """At a ruinous learning rate the best checkpoint is early, and equals a run that ends there."""
    file = tmp_path / "experiment.py"
    run = tmp_path / "run"
    file.write_text(EXPERIMENT.format(init=str(base)))
    ruin = [
        "--optim.learning-rate",
        "0.3",
        "--train.keep-best",
        "--train.keep",
        "1",
        "--no-wandb",
        "--train.checkpoint-every",
        "1",
    ]
    assert main(["train", str(file), "--run-dir", str(run), "--train.steps", "3", *ruin]) == 0
    losses = [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
    best = 1 + int(np.argmin(losses))
    assert best < 3
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        str(best),
        "3",
    ]
    evaluate = [
        "eval",
        str(run),
        "--evals",
        "ppl",
        "--seq-len",
        "64",
        "--out",
        str(tmp_path / "rows"),
    ]
    for which in ("latest", "best", str(best)):
        assert main([*evaluate, "--checkpoint", which]) == 0
    rows = read_records(tmp_path / "rows" / "records.jsonl")
    first = rows[: len(rows) // 2]
    second = rows[len(rows) // 2 :]  # asked by its number, the best is not asked again
    assert {(row.model.checkpoint, row.model.steps) for row in first} == {("run step 3", 3)}
    assert {(row.model.checkpoint, row.model.steps) for row in second} == {
        (f"run step {best}", best)
    }
    assert [row.item for row in first] == [row.item for row in second]
    short = tmp_path / "short"
    assert (
        main(["train", str(file), "--run-dir", str(short), "--train.steps", str(best), *ruin]) == 0
    )
    tokens = np.arange(40)[None]
    logits = [
        np.asarray(ctxext.load(run, checkpoint=which).logits(tokens))
        for which in ("best", best, "latest")
    ]
    np.testing.assert_array_equal(logits[0], np.asarray(ctxext.load(short).logits(tokens)))
    np.testing.assert_array_equal(logits[1], logits[0])
    assert np.abs(logits[2] - logits[0]).max() > 1e-2
    out = ["--out", str(tmp_path / "out"), "--dtype", "float32"]
    assert main(["export", str(run), "--checkpoint", "best", *out]) == 0
    np.testing.assert_array_equal(
        np.asarray(ctxext.load(tmp_path / "out").logits(tokens)), logits[0]
    )
    texts = []
    for source, which in ((run, "best"), (short, "latest"), (run, "latest")):
        capsys.readouterr()
        main(
            [
                "generate",
                str(source),
                "--checkpoint",
                which,
                "--prompt",
                "def f(x):",
                "--max-new-tokens",
                "8",
            ]
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    there = f"no checkpoint 7 under {run / 'checkpoints'}; there are {best}, 3"
    assert there in refused(capsys, *evaluate, "--checkpoint", 7)
    assert "no run directory and has no checkpoint best" in refused(
        capsys, "eval", base, "--checkpoint", "best"
    )


def test_export_generate_and_prove_with_a_method(base: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    argv = [
        "export",
        str(base),
        "--method",
        "linear",
        "--factor",
        "4",
        "--out",
        str(out),
        "--dtype",
        "float32",
    ]
    assert main(argv) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "linear"
    assert config["max_position_embeddings"] == 256
    assert data(capsys, "prove", str(out))["equal"]
    # The export carries its scaling: it generates what the base does under the same method.
    texts = []
    for source, method in ((out, []), (base, ["--method", "linear", "--factor", "4"])):
        capsys.readouterr()
        assert (
            main(
                [
                    "generate",
                    str(source),
                    *method,
                    "--prompt",
                    "def f(x):" * 12,
                    "--max-new-tokens",
                    "8",
                ]
            )
            == 0
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    # A declared window may differ from factor x L, as in Llama 3.1; importing keeps it.
    (out / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    imported = tmp_path / "imported"
    assert main(["import", str(out), "--out", str(imported)]) == 0
    again = json.loads((imported / "config.json").read_text())
    assert again["rope_scaling"] == config["rope_scaling"]
    assert again["max_position_embeddings"] == 512


def test_overrides_and_dry_run(finished: tuple[Path, Path], capsys) -> None:
    file, _ = finished
    capsys.readouterr()
    argv = [
        "train",
        str(file),
        "--method",
        "ntk",
        "--rope.factor=8",
        "--train.steps",
        "7",
        "--print-config",
    ]
    assert main(argv) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["rope"] == {"__type__": "rope/ntk", "factor": 8.0}
    assert config["train"]["steps"] == 7
    assert main(["train", str(file), "--method", "pi", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"{CONFIG.num_parameters:,}" in printed
    assert "linear(factor=4)" in printed
    assert "3, 768 tokens" in printed


def test_methods_and_rope(capsys) -> None:
    names = [row["name"] for row in data(capsys, "methods")]
    assert {
        "none",
        "linear",
        "ntk",
        "dynamic-ntk",
        "yarn",
        "llama3",
        "pose",
        "rand-pos",
        "self-extend",
        "causal",
    } <= set(names)
    rope = data(capsys, "rope", "yarn", "--factor", "2")
    assert len(rope["inv_freq"]) == 64
    assert abs(rope["inv_freq"][40] / 1.94601715e-3 - 1) < 2e-6
    assert abs(rope["attention_factor"] - 1.0693147181) < 1e-9
    assert rope["hf_config"]["max_position_embeddings"] == 8192
    assert "--seq-len" in refused(capsys, "rope", "dynamic-ntk", "--factor", "2")


def test_a_run_that_evaluates_nothing_ends_well(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "experiment.py"
    without = "evals=(), zero_shot=(), baselines=(), export=None"
    file.write_text(
        f"import dataclasses\n{EXPERIMENT.format(init=str(base))}"
        f"experiment = dataclasses.replace(experiment, {without})\n"
    )
    result = data(
        capsys,
        "run",
        str(file),
        "--run-dir",
        str(tmp_path / "run"),
        "--no-wandb",
        "--train.steps",
        "1",
    )
    assert result["verdict"] == ["There are no records: nothing was evaluated."]
    assert result["proof"] is None
    assert (tmp_path / "run" / "report.html").is_file()
    assert read_jsonl(tmp_path / "run" / "records.jsonl") == []


@pytest.mark.check
def test_methods_from_a_file_work_from_end_to_end(
    finished, base: Path, tmp_path: Path, capsys
) -> None:
    """The file of the README: options, two training steps, evaluation, export, proof, plot."""
    file, _ = finished
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (source,) = re.findall(r"```python\n(# mine\.py\n.*?)```", readme, re.DOTALL)
    mine = tmp_path / "mine.py"
    mine.write_text(source)
    half = f"{mine}:HalfPI"
    strides = f"{mine}:Strides"
    run = tmp_path / "run"
    argv = [
        "run",
        str(file),
        "--method",
        half,
        "--rope.factor",
        "8",
        "--method",
        strides,
        "--positions.longest=3",
        "--train.steps",
        "2",
        "--run-dir",
        str(run),
        "--no-wandb",
    ]
    assert main([*argv, "--print-config", "--dry-run"]) == 0
    assert "half-pi(factor=8)" in capsys.readouterr().out
    assert not run.exists()
    summary = data(capsys, *argv)
    config = json.loads((run / "config.json").read_text())
    assert config["rope"] == {"__type__": half, "factor": 8.0}
    assert config["positions"]["longest"] == 3
    assert len(read_jsonl(run / "metrics.jsonl")) == 2
    assert summary["proof"]["equal"]
    assert any("half-pi" in cell["method"] for cell in summary["retrieval"])
    rope = json.loads((run / "export" / "config.json").read_text())["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    assert rope["long_factor"] == [1.0] * 4 + [8.0] * 4
    # A run is data: its code is imported only when that is asked for.
    assert "--trust-run" in refused(capsys, "eval", run)
    argv = [
        "eval",
        str(run),
        "--trust-run",
        "--evals",
        "passkey",
        "--seq-len",
        "64",
        "--out",
        str(tmp_path / "rows"),
    ]
    assert main(argv) == 0
    out = ["--out", str(tmp_path / "again"), "--dtype", "float32"]
    assert main(["export", str(run), "--trust-run", *out]) == 0
    assert data(capsys, "prove", out[1])["equal"]
    plot = tmp_path / "waves.svg"
    shape = ["--factor", "8", "--head-dim", "16", "--original", "64", "--seq-len", "512"]
    assert main(["rope", half, "linear", *shape, "--plot", str(plot)]) == 0
    assert "of half-pi(factor=8), 0 of linear(factor=8)" in plot.read_text()
    assert "does not change frequencies" in refused(capsys, "rope", strides)


def test_bad_input_is_one_line(
    finished: tuple[Path, Path], base: Path, tmp_path: Path, capsys
) -> None:
    file, run = finished
    train = ["train", file, "--run-dir", tmp_path / "new", "--no-wandb"]
    assert "did you mean --train.steps" in refused(capsys, *train, "--train.stps", 4)
    assert "did you mean 'yarn'" in refused(capsys, *train, "--method", "yran")
    assert "train.dtype" in refused(capsys, *train, "--train.dtype", "float12")
    assert "needs factor" in refused(capsys, "eval", base, "--method", "yarn")
    assert "does not exist" in refused(capsys, "eval", tmp_path / "nowhere")
    assert "does not exist" in refused(capsys, "train", tmp_path / "nowhere.py")
    assert "factor" in refused(capsys, "eval", base, "--method", "yarn", "--factr", 4)
    assert "another experiment" in refused(
        capsys, "train", file, "--run-dir", run, "--seed", 1, "--no-wandb"
    )
    assert "cannot shrink" in refused(
        capsys, "train", file, "--run-dir", run, "--train.steps", 1, "--no-wandb"
    )
    short = ["eval", base, "--evals", "passkey", "--seq-len", 16, "--out", tmp_path / "new"]
    assert "16 tokens" in refused(capsys, *short)
    assert "already exists" in refused(capsys, "export", base, "--out", run / "export")
    # A PoSE target shorter than the rows, found at the first batch.
    assert "PoSE" in refused(
        capsys, *train, "--method", "pose", "--positions.max-position-embeddings", 64
    )
    assert not (tmp_path / "new" / "records.jsonl").exists()
    assert not (tmp_path / "new" / "checkpoints" / "1").exists()


def test_a_wrong_choice_is_one_line(base: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(base), "--out", str(tmp_path / "out"), "--dtype", "float12"])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert len(lines) == 1
    assert "float12" in lines[0]
    assert "bfloat16" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "truncated", "escaping", "wrong-shape"])
def test_damaged_checkpoints(base: Path, tmp_path: Path, capsys, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    shard = next(broken.glob("*.safetensors"))
    if damage == "missing":
        shard.unlink()
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "escaping":
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "../base/model.safetensors"}}
        (broken / "model.safetensors.index.json").write_text(json.dumps(index))
        shard.unlink()
    else:
        config = json.loads((broken / "config.json").read_text())
        (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    line = refused(capsys, "import", broken, "--out", tmp_path / "out")
    assert str(broken) in line or "model" in line
    assert not (tmp_path / "out").exists()


def test_no_space_left_leaves_nothing(base: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    import errno

    from ctxext.interop import hf as module

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_tensors", full)
    assert "No space left" in refused(capsys, "export", base, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
