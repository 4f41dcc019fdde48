"""Two processes of two devices equal one of four, to the bit, even if killed or stopped."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from ctxext import loading
from ctxext.assets import TINY_LLAMA
from ctxext.cli.main import main
from ctxext.files import read_jsonl
from ctxext.model.config import LlamaConfig
from ctxext.model.decoder import init_params, param_shapes
from ctxext.parallel import distributed
from ctxext.parallel.mesh import Mesh
from ctxext.rope import Unscaled
from ctxext.tokenization.tokenizer import load_tokenizer
from ctxext.training.checkpoint import find_step, load_params
from support import processes
from support.hf_files import write_hf

CONFIG = LlamaConfig(1024, 64, 96, 2, 4, 2, 16, 1e-5, 1e4, 64)
STEPS = 40
EXPERIMENT = f"""
from ctxext.data import Stdlib
from ctxext.evals import Perplexity, Retrieval
from ctxext.experiment import Experiment, Train
from ctxext.methods import Linear
from ctxext.optim import Optim
from ctxext.parallel.mesh import Mesh

experiment = Experiment(
    name="processes",
    init={{init!r}},
    rope=Linear(4.0),
    data=Stdlib("heldout"),
    optim=Optim(learning_rate=1e-3),
    train=Train(
        steps={STEPS}, seq_len=64, batch_size=4, accumulate=2, checkpoint_every=10, log_every=1
    ),
    mesh=Mesh(fsdp=2, tensor=2),
    evals=(
        Retrieval(seq_lens=(64,), depths=(0.0, 1.0), n=2),
        Perplexity((64,), num_documents=2, target_tokens=32),
    ),
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a base model and an experiment that starts from it."""
    path = tmp_path_factory.mktemp("processes")
    params = jax.tree.map(np.asarray, init_params(CONFIG, 0))
    write_hf(path / "base", CONFIG, params, Unscaled(), load_tokenizer(TINY_LLAMA), dtype="float32")
    (path / "experiment.py").write_text(EXPERIMENT.format(init=str(path / "base")))
    return path


def command(folder: Path, run: str, name: str = "run") -> list:
    return [name, folder / "experiment.py", "--run-dir", folder / run, "--no-wandb"]


@pytest.fixture(scope="module")
def single_run(folder: Path) -> Path:
    """The run of one process with four devices."""
    started = processes.start(command(folder, "single"), folder / "cache", processes=1)
    ((code, _, errors),) = processes.finish(started)
    assert code == 0, errors
    return folder / "single"


def metrics(run: Path) -> list[tuple]:
    rows = read_jsonl(run / "metrics.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def assert_same(run: Path, single_run: Path) -> None:
    shapes = Mesh(fsdp=2, tensor=2).shard(param_shapes(CONFIG))
    params, step = load_params(run / "checkpoints", shapes)
    expected, _ = load_params(single_run / "checkpoints", shapes)
    assert step == STEPS
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, expected)
    )
    assert metrics(run) == metrics(single_run)
    assert len(metrics(run)) == STEPS


@pytest.mark.check
def test_two_processes_that_are_killed_and_restarted_end_where_one_ends(
    folder: Path, single_run: Path
) -> None:
    run = folder / "killed"
    started = processes.start(command(folder, "killed", "train"), folder / "cache")
    processes.until(lambda: len(read_jsonl(run / "metrics.jsonl")) > 14, started)
    started[0].send_signal(signal.SIGKILL)
    first, second = processes.finish(started)
    assert first[0] == -signal.SIGKILL
    # The other process does not wait forever.
    assert second[0] != 0
    assert find_step(run / "checkpoints") < STEPS
    results = processes.finish(processes.start(command(folder, "killed"), folder / "cache"))
    for code, out, errors in results:
        assert code == 0, (out, errors)
    assert_same(run, single_run)
    for path in "export/model.safetensors", "export/config.json", "records.jsonl":
        assert (run / path).read_bytes() == (single_run / path).read_bytes(), path
    (_, out, errors), (_, second_out, second_errors) = results
    assert f"run directory  {run}" in out
    assert "step 40/40" in errors
    assert second_out == ""
    assert "step" not in second_errors
    assert "Gloo" not in out


@pytest.mark.check
def test_sigterm_to_one_stops_all_and_a_single_process_may_resume(
    folder: Path, single_run: Path
) -> None:
    run = folder / "stopped"
    started = processes.start(command(folder, "stopped", "train"), folder / "cache")
    processes.until(lambda: len(read_jsonl(run / "metrics.jsonl")) > 4, started)
    started[1].send_signal(signal.SIGTERM)
    results = processes.finish(started)
    assert [code for code, *_ in results] == [0, 0], results
    stopped = find_step(run / "checkpoints")
    assert 5 <= stopped < STEPS
    assert f"stopped after step {stopped} of {STEPS}, saved" in results[0][2]
    again = processes.start(command(folder, "stopped", "train"), folder / "cache", processes=1)
    ((code, _, errors),) = processes.finish(again)
    assert code == 0, errors
    assert_same(run, single_run)


@pytest.mark.check
def test_eval_and_export_from_two_processes_give_the_bytes_of_one(
    folder: Path, single_run: Path
) -> None:
    for number in (1, 2):
        evaluate = "--evals ppl passkey --seq-len 64 --out".split()
        for name, *options in (
            ("eval", *evaluate, folder / f"e{number}"),
            ("export", "--out", folder / f"x{number}" / "hf"),
        ):
            line = [name, single_run, "--mesh", "fsdp=2", "tensor=2", *options]
            started = processes.start(line, folder / "cache", processes=number)
            for code, out, errors in processes.finish(started):
                assert code == 0, (out, errors)
    for path in "e{}/records.jsonl", "x{}/hf/model.safetensors", "x{}/hf/README.md":
        from_one = (folder / path.format(1)).read_bytes()
        from_two = (folder / path.format(2)).read_bytes()
        assert from_one, path
        assert from_two == from_one, path


@pytest.mark.slow
def test_a_run_on_a_quantized_base_is_the_same_from_two_processes(folder: Path) -> None:
    """Trained, and exported a matrix at a time."""
    config = dataclasses.replace(CONFIG, intermediate_size=128)  # whole blocks
    params = jax.tree.map(np.asarray, init_params(config, 0))
    base = folder / "wide"
    write_hf(base, config, params, Unscaled(), load_tokenizer(TINY_LLAMA), dtype="float32")
    options = "--method lora --rank 2 --quantize nf4-double --train.steps 4".split()
    runs = [folder / "quantized1", folder / "quantized2"]
    exports = [folder / "xq1", folder / "xq2"]
    for number, (run, out) in enumerate(zip(runs, exports, strict=True), 1):
        train = [*command(folder, run.name, "train"), "--init", base, *options]
        export = ["export", run, "--out", out, "--mesh", "fsdp=2", "tensor=2"]
        for line in (train, export):
            started = processes.start(line, folder / "cache", processes=number)
            for code, text, errors in processes.finish(started):
                assert code == 0, (text, errors)
    assert len(metrics(runs[0])) == 4
    assert metrics(runs[0]) == metrics(runs[1])
    weights = [(out / "model.safetensors").read_bytes() for out in exports]
    assert weights[0] == weights[1]
    provenance = [json.loads((run / "provenance.json").read_text()) for run in runs]
    for name in ("base", "quantized"):
        assert provenance[0][name] == provenance[1][name]


@pytest.mark.check
def test_bad_input_is_one_line_of_the_first_process(folder: Path, single_run: Path) -> None:
    line = [*command(folder, "single"), "--train.seq-len", 32]
    first, second = processes.finish(processes.start(line, folder / "cache"))
    code, _, errors = first
    assert (code, second[0]) == (2, 2)
    (message,) = (line for line in errors.splitlines() if line.startswith("ctxext: "))
    assert message == (
        f"ctxext: {single_run} belongs to another experiment: "
        "train.seq_len is 64 there and 32 here; choose another --run-dir"
    )


@pytest.mark.check
def test_a_process_reads_and_holds_its_share_and_computes_like_the_others(folder: Path) -> None:
    out = folder / "worker"
    started = processes.start([folder / "base", out], folder / "cache", script=processes.__file__)
    for code, _, errors in processes.finish(started):
        assert code == 0, errors
    first = json.loads(Path(f"{out}.0").read_text())
    second = json.loads(Path(f"{out}.1").read_text())
    assert first["rows"] == [0, 1, 2, 3]
    assert second["rows"] == [4, 5, 6, 7]
    assert first["devices"] == 4
    for result in (first, second):
        kernels = {name: share for name, share in result["tiny"].items() if "norm" not in name}
        assert len(kernels) == 2 + 7 * 2
        assert set(kernels.values()) == {0.5}
        large = {name: share for name, share in result["large"].items() if "norm" not in name}
        # One layer of 80, as it is read.
        assert len(large) == 2 + 7
        assert set(large.values()) == {0.5}
        assert result["largest"] == 6
        assert result["broadcast"] == {"from": 0, "text": "ä" * 300}
    for key in ("logits", "loss", "generate", "sampled"):
        assert first[key] == second[key], key
    lm = loading.load(folder / "base", mesh=Mesh(fsdp=2, tensor=2))
    tokens = np.arange(3 * 20).reshape(3, 20)
    np.testing.assert_allclose(first["loss"], lm.loss(tokens), atol=1e-5)
    np.testing.assert_allclose(
        first["logits"], np.asarray(lm.logits(tokens), np.float64).sum(-1), atol=1e-3
    )
    assert first["generate"] == lm.generate(list(tokens), max_new_tokens=5).tolist()
    sampled = lm.generate(list(tokens), max_new_tokens=5, temperature=1.0, seed=3)
    assert first["sampled"] == sampled.tolist()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--coordinator", "here:1"],
            "give all of --coordinator HOST:PORT --num-processes N --process-id I, or none",
        ),
        (["--num-processes", "2"], "give all of"),
        (
            ["--coordinator", "here:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id 2 must be in 0..1",
        ),
        (
            ["--coordinator", "here", "--num-processes", "2", "--process-id", "1"],
            "--coordinator here must be HOST:PORT",
        ),
    ],
)
def test_an_incomplete_address_is_refused(flags, message, capsys) -> None:
    assert main(["eval", str(TINY_LLAMA), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "many"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, True),
        # In a batch script, before srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_the_environment_tells_whether_there_are_others(environment, many, monkeypatch) -> None:
    launchers = ("SLURM", "OMPI", "KUBERNETES", "TPU", "MEGASCALE")
    for name in [name for name in os.environ if name.startswith(launchers)]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls: list = []

    def initialize(*arguments, **_):
        calls.append(arguments)
        raise RuntimeError("nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda *a: None)
    if many:
        with pytest.raises(
            ValueError, match=r"cannot join the others \(nobody there\); .*--num-processes 1"
        ):
            distributed.initialize()
        # jax itself finds out where they are.
        assert calls == [(None, None, None)]
        distributed.initialize(num_processes=1)
    else:
        distributed.initialize()
    assert len(calls) == many


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(processes.slurm, marks=pytest.mark.check),
        pytest.param(processes.open_mpi, marks=pytest.mark.slow),
    ],
    ids=lambda x: x.__name__,
)
def test_the_environment_of_a_launcher_is_all_they_need(
    launcher, folder: Path, single_run: Path
) -> None:
    """jax itself reads the variables of a real step; the losses are those of one process."""
    run = folder / launcher.__name__
    # Its own cache: two processes of jax 0.12 that find a program in a cache disagree about its
    # collectives.
    cache = folder / f"cache of {run.name}"
    started = processes.start(
        [*command(folder, run.name, "train"), "--train.steps", 2], cache, launcher=launcher
    )
    first, second = processes.finish(started)
    code, out, errors = first
    second_code, second_out, second_errors = second
    assert code == second_code == 0, (errors, second_errors)
    assert f"run directory: {run}" in out
    assert second_out == ""
    assert metrics(run) == metrics(single_run)[:2]


def test_a_launcher_without_an_address_is_refused(folder: Path) -> None:
    """Open MPI 5 sets the numbers and no address."""

    def open_mpi_5(port: int, index: int, count: int) -> dict[str, str]:
        variables = processes.open_mpi(port, index, count)
        return {key: value for key, value in variables.items() if "orte" not in key}

    line = [*command(folder, "nowhere", "train"), "--train.steps", 2]
    started = processes.start(line, folder / "cache", launcher=open_mpi_5)
    for code, _, errors in processes.finish(started):
        assert code == 2
        assert "cannot join the others" in errors
        assert "--coordinator HOST:PORT" in errors
    assert not (folder / "nowhere").exists()


def test_a_single_process_is_the_primary() -> None:
    assert distributed.is_primary()
    assert distributed.process_count() == 1
    assert not distributed.is_initialized()
    assert distributed.all_reduce_max(3) == 3
    assert distributed.broadcast_from_primary(lambda: 4) == 4
    assert distributed.exit_if_failed(2) == 2
    assert Mesh(fsdp=4).own_rows(8) == list(range(8))


@pytest.mark.slow
def test_two_processes_monitor_what_one_monitors(folder: Path) -> None:
    monitored = []
    for count in (1, 2):
        options = ["--train.steps=4", "--train.monitor-every=2"]
        line = [*command(folder, f"monitor{count}", "train"), *options]
        started = processes.start(line, folder / "cache", processes=count)
        for code, _, errors in processes.finish(started):
            assert code == 0, errors
        rows = read_jsonl(folder / f"monitor{count}" / "metrics.jsonl")
        monitored.append([row for row in rows if "short_loss" in row])
    assert [row["step"] for row in monitored[1]] == [0, 2, 4]
    for from_one, from_two in zip(*monitored, strict=True):
        assert from_two == pytest.approx(from_one, rel=1e-5, abs=1e-6)
