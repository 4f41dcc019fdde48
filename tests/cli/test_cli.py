"""Every command on real directories. Bad input gives one line and status 2, and leaves nothing."""

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
from support.command_line import argv
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
    data=Mix(((0.5, Stdlib("train")), (0.5, Synthetic(tasks.Passkey(wording="code"))))),
    optim=Optim(learning_rate=1e-3),
    train=Train(steps=3, seq_len=128, batch_size=2, checkpoint_every=2, log_every=1),
    evals=(
        Retrieval(seq_lens=(64, 256), depths=(0.0, 1.0), n=2, task=tasks.Passkey(wording="code")),
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


def data(capsys: pytest.CaptureFixture, *arguments: object) -> dict:
    """Run a command that succeeds; the object that it prints with --json."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a command that succeeds; the text that it prints."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one error line of a refused command."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
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
    records = read_records(run / "records.jsonl")
    methods = {record.model.label for record in records}
    assert len(methods) == 4
    assert len(records) == 4 * (2 * 2 * 2 + 2 * 2)
    proof = json.loads((run / "export" / "proof.json").read_text())
    assert proof["equal"]
    assert "numpy" in [reader["reader"] for reader in proof["readers"]]
    # Run again, the command has nothing left to do: no record is added, the tables are the same.
    again = data(capsys, "run", file, "--run-dir", run, "--no-wandb")
    assert read_records(run / "records.jsonl") == records
    assert {cell["method"] for cell in again["retrieval"]} == methods


@pytest.mark.check
def test_more_steps_are_exported_again(finished: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    file, run = finished
    shutil.copytree(run, tmp_path / "run")
    before = (tmp_path / "run" / "export" / "model.safetensors").read_bytes()
    command = argv("run {file} --run-dir {run} --no-wandb", file=file, run=tmp_path / "run")
    summary = data(capsys, *command, "--train.steps", 4)
    assert summary["proof"]["equal"]
    assert not summary["proof"]["weights_that_differ"]
    assert (tmp_path / "run" / "export" / "model.safetensors").read_bytes() != before


def test_a_run_without_training_keeps_its_attention(
    finished: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    original, _ = finished
    untrained = "attention=SelfExtend(4, 16), export=None"
    file = tmp_path / "zero.py"
    file.write_text(original.read_text().replace("rope=Yarn(factor=4.0)", untrained))
    command = argv("run {file} --run-dir {run} --no-wandb", file=file, run=tmp_path / "run")
    cells = data(capsys, *command, "--train.steps", 0)["retrieval"]
    methods = {cell["method"] for cell in cells}
    assert "self-extend(group_size=4, neighbor_window=16), zero-shot" in methods


def test_eval_report_and_python_agree(finished: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    _, run = finished
    command = "eval {run} --evals passkey --wording code --seq-len 64 --out {out}"
    summary = data(capsys, *argv(command, run=run, out=tmp_path))
    assert [cell["seq_len"] for cell in summary["retrieval"]] == [64]
    assert data(capsys, "report", tmp_path) == summary
    assert "passkey" in printed(capsys, "report", tmp_path)


@pytest.mark.slow
def test_every_command_opens_the_chosen_checkpoint(base: Path, tmp_path: Path, capsys) -> None:
    """At a ruinous learning rate the best checkpoint is early, and equals a run that ends there."""
    file = tmp_path / "experiment.py"
    run = tmp_path / "run"
    file.write_text(EXPERIMENT.format(init=str(base)))
    train = (
        "train {file} --run-dir {run} --train.steps {steps} --optim.learning-rate 0.3 "
        "--train.keep-best train_loss --train.keep 1 --train.checkpoint-every 1 --no-wandb"
    )
    assert main(argv(train, file=file, run=run, steps=3)) == 0
    losses = [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
    best = 1 + int(np.argmin(losses))
    assert best < 3
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [str(best), "3"]
    evaluate = argv(
        "eval {run} --evals ppl --seq-len 64 --out {out}", run=run, out=tmp_path / "records"
    )
    for which in ("latest", "best", str(best)):
        assert main([*evaluate, "--checkpoint", which]) == 0
    # The best checkpoint, chosen once more by its step, is not evaluated again.
    records = read_records(tmp_path / "records" / "records.jsonl")
    of_latest = records[: len(records) // 2]
    of_best = records[len(records) // 2 :]
    models = [
        {(record.model.checkpoint, record.model.steps) for record in part}
        for part in (of_latest, of_best)
    ]
    assert models == [{("run", 3)}, {("run", best)}]
    assert [record.item for record in of_latest] == [record.item for record in of_best]
    short = tmp_path / "short"
    assert main(argv(train, file=file, run=short, steps=best)) == 0
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
    assert f", {best} steps at " in (tmp_path / "out" / "README.md").read_text()
    np.testing.assert_array_equal(
        np.asarray(ctxext.load(tmp_path / "out").logits(tokens)), logits[0]
    )
    options = ["--prompt", "def f(x):", "--max-new-tokens", 8]
    texts = [
        printed(capsys, "generate", source, "--checkpoint", which, *options)
        for source, which in ((run, "best"), (short, "latest"), (run, "latest"))
    ]
    assert texts[0] == texts[1]
    assert texts[1] != texts[2]
    message = f"no checkpoint 7 under {run / 'checkpoints'}; there are {best}, 3"
    assert message in refused(capsys, *evaluate, "--checkpoint", 7)
    message = "is not a run directory and has no checkpoint best"
    assert message in refused(capsys, "eval", base, "--checkpoint", "best")


def test_export_generate_and_prove_with_a_method(base: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = "export {base} --method linear --factor 4 --out {out} --dtype float32"
    assert main(argv(command, base=base, out=out)) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["rope_scaling"]["rope_type"] == "linear"
    assert config["max_position_embeddings"] == 256
    assert data(capsys, "prove", out)["equal"]
    # The export carries its scaling: it generates what the base does under the same method.
    options = ["--prompt", "def f(x):" * 12, "--max-new-tokens", 8]
    exported = printed(capsys, "generate", out, *options)
    scaled = printed(capsys, "generate", base, "--method", "linear", "--factor", 4, *options)
    assert exported == scaled
    # A declared window may differ from factor x L, as in Llama 3.1; importing keeps it.
    (out / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    imported = tmp_path / "imported"
    next_commands = f"check it with: ctxext prove {imported}; measure it: ctxext eval {imported}"
    assert f"; {next_commands}" in printed(capsys, "import", out, "--out", imported)
    again = json.loads((imported / "config.json").read_text())
    assert again["rope_scaling"] == config["rope_scaling"]
    assert again["max_position_embeddings"] == 512


def test_overrides_and_dry_run(finished: tuple[Path, Path], capsys) -> None:
    file, _ = finished
    command = "train {file} --method ntk --rope.factor=8 --train.steps 7 --print-config"
    config = json.loads(printed(capsys, *argv(command, file=file)))
    assert config["rope"] == {"__type__": "rope/ntk", "factor": 8.0}
    assert config["train"]["steps"] == 7
    plan = printed(capsys, "train", file, "--method", "pi", "--dry-run")
    assert f"{CONFIG.num_parameters:,}" in plan
    assert "linear(factor=4)" in plan
    assert "3, 768 tokens" in plan


def test_methods_and_rope(capsys) -> None:
    names = {row["name"] for row in data(capsys, "methods")}
    assert names >= {"none", "linear", "ntk", "dynamic-ntk", "yarn", "llama3"}
    assert names >= {"pose", "rand-pos", "self-extend", "causal"}
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
    nothing = "evals=(), zero_shot=(), baselines=(), export=None"
    file.write_text(
        f"import dataclasses\n{EXPERIMENT.format(init=str(base))}"
        f"experiment = dataclasses.replace(experiment, {nothing})\n"
    )
    command = argv("run {file} --run-dir {run} --no-wandb", file=file, run=tmp_path / "run")
    result = data(capsys, *command, "--train.steps", 1)
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
    command = argv(
        "run {file} --method {half} --rope.factor 8 --method {strides} --positions.longest=3 "
        "--train.steps 2 --run-dir {run} --no-wandb",
        file=file,
        half=half,
        strides=strides,
        run=run,
    )
    assert "half-pi(factor=8)" in printed(capsys, *command, "--print-config", "--dry-run")
    assert not run.exists()
    summary = data(capsys, *command)
    config = json.loads((run / "config.json").read_text())
    assert config["rope"] == {"__type__": half, "factor": 8.0}
    assert config["positions"]["longest"] == 3
    assert len(read_jsonl(run / "metrics.jsonl")) == 2
    assert summary["proof"]["equal"]
    assert any("half-pi" in cell["method"] for cell in summary["retrieval"])
    rope = json.loads((run / "export" / "config.json").read_text())["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    assert rope["long_factor"] == [1.0] * 4 + [8.0] * 4
    # A run is data: the code that it names is imported only on request.
    assert "--trust-run" in refused(capsys, "eval", run)
    evaluate = "eval {run} --trust-run --evals passkey --wording code --seq-len 64 --out {out}"
    assert main(argv(evaluate, run=run, out=tmp_path / "records")) == 0
    export = "export {run} --trust-run --out {out} --dtype float32"
    assert main(argv(export, run=run, out=tmp_path / "again")) == 0
    assert data(capsys, "prove", tmp_path / "again")["equal"]
    plot = tmp_path / "waves.svg"
    rope = "rope {half} linear --factor 8 --head-dim 16 --original 64 --seq-len 512 --plot {plot}"
    assert main(argv(rope, half=half, plot=plot)) == 0
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
    resume = ["train", file, "--run-dir", run, "--no-wandb"]
    assert "another experiment" in refused(capsys, *resume, "--seed", 1)
    assert "cannot shrink" in refused(capsys, *resume, "--train.steps", 1)
    short = ["eval", base, "--evals", "passkey", "--seq-len", 16, "--out", tmp_path / "new"]
    assert "16 tokens" in refused(capsys, *short)
    assert "already exists" in refused(capsys, "export", base, "--out", run / "export")
    # A PoSE target shorter than the rows is refused at the first batch.
    pose = ["--method", "pose", "--positions.max-position-embeddings", 64]
    assert "PoSE" in refused(capsys, *train, *pose)
    assert not (tmp_path / "new" / "records.jsonl").exists()
    assert not (tmp_path / "new" / "checkpoints" / "1").exists()


def test_a_wrong_choice_is_one_line(base: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(base), "--out", str(tmp_path / "out"), "--dtype", "float12"])
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2
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
