"""`kill -9` fifty times, at random moments and while saving, changes no bit of the result."""

import random
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ctxext.assets import TINY_LLAMA
from ctxext.files import read_jsonl
from ctxext.model.decoder import init_params
from ctxext.rope import Unscaled
from ctxext.tokenization.tokenizer import load_tokenizer
from ctxext.training.checkpoint import load_params
from ctxext.training.checksums import find_corruption, has_checksums
from parallel.test_processes import CONFIG
from support import processes
from support.hf_files import write_hf

KILLS = 50
STEPS = 900
EXPERIMENT = f"""
from ctxext.data import Stdlib
from ctxext.experiment import Experiment, Train
from ctxext.methods import Linear
from ctxext.optim import Optim

experiment = Experiment(
    name="chaos",
    init={{init!r}},
    rope=Linear(4.0),
    data=Stdlib("heldout"),
    optim=Optim(learning_rate=1e-3),
    train=Train(
        steps={STEPS},
        seq_len=64,
        batch_size=2,
        checkpoint_every=5,
        log_every=1,
        keep=3,
        keep_best="train_loss",
    ),
)
"""


@pytest.mark.slow
def test_fifty_kills_end_in_the_same_parameters(tmp_path: Path) -> None:
    params = jax.tree.map(np.asarray, init_params(CONFIG, 0))
    tokenizer = load_tokenizer(TINY_LLAMA)
    write_hf(tmp_path / "base", CONFIG, params, Unscaled(), tokenizer, dtype="float32")
    (tmp_path / "experiment.py").write_text(EXPERIMENT.format(init=str(tmp_path / "base")))

    def start(run: str) -> list:
        line = ["train", tmp_path / "experiment.py", "--run-dir", tmp_path / run, "--no-wandb"]
        return processes.start(line, tmp_path / "cache", processes=1, devices=1)

    ((code, _, errors),) = processes.finish(start("undisturbed"))
    assert code == 0, errors
    rng = random.Random(0)
    run = tmp_path / "chaos"
    in_save = 0
    lost = 0
    for kill in range(KILLS):
        before = rows(run)
        (process,) = start("chaos")
        # Every fifth one may be killed while it is still starting.
        patience = rng.uniform(0, 5) if kill % 5 == 0 else 120
        until = time.monotonic() + patience
        steps = rng.randrange(1, 12)
        while time.monotonic() < until and rows(run) < before + steps and process.poll() is None:
            time.sleep(0.002)
        while kill % 2 and process.poll() is None and not saving(run):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.communicate()
        assert process.returncode == -9, (
            f"it ended before it was killed for the {kill + 1}th time: more STEPS"
        )
        in_save += saving(run)
        lost += rows(run) <= before
        done = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
        assert all(find_corruption(path) is None for path in done if has_checksums(path))
    ((code, _, errors),) = processes.finish(start("chaos"))
    assert code == 0, errors
    assert "damaged" not in errors, errors
    print(f"{KILLS} kills, {in_save} of them during a save, {lost} before any new step")
    assert in_save >= KILLS // 5
    undisturbed, _ = load_params(tmp_path / "undisturbed" / "checkpoints")
    killed, step = load_params(tmp_path / "chaos" / "checkpoints")
    assert step == STEPS

    def same_bits(a, b) -> bool:
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()

    assert jax.tree.all(jax.tree.map(same_bits, undisturbed, killed))
    assert losses(run) == losses(tmp_path / "undisturbed")
    assert len(losses(run)) == STEPS


def rows(run: Path) -> int:
    """How many rows the run has logged."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((run / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def losses(run: Path) -> list[tuple[int, float]]:
    return [
        (row["step"], row["loss"]) for row in read_jsonl(run / "metrics.jsonl") if "loss" in row
    ]
