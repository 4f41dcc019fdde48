"""The loop: one step to the digit, resuming to the bit, and nothing saved that is not finite."""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Causal
from ctxext.data import Files, make_batch
from ctxext.experiment import Experiment
from ctxext.export import export
from ctxext.files import read_jsonl
from ctxext.loading import read_config, read_context
from ctxext.methods import ABF, Linear, PoSE
from ctxext.model.decoder import param_shapes
from ctxext.model.lm import LM
from ctxext.model.loss import batch_loss
from ctxext.optim import Optim
from ctxext.positions import Contiguous
from ctxext.rope import RopeScaling, Unscaled
from ctxext.rundir import RunDir
from ctxext.tracking import JsonlSink
from ctxext.training import batches, loop
from ctxext.training.checkpoint import find_step, load_params
from ctxext.training.loop import NotFinite, train
from ctxext.training.step import make_step
from support import llamas
from support.tiny_train import CONFIG, ByteTokenizer, tiny_base, tiny_experiment, write_texts

ROOT = Path(__file__).parents[2]

STATIC = {
    "config": CONFIG,
    "attention": Causal(),
    "kernel": "blocked",
    "dtype": "float32",
    "remat": "none",
}
ROTATION = Unscaled().rope(CONFIG.rope_base(), 32).rotation()


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


class At:
    """A sink that acts when a step is logged."""

    def __init__(self, step: int, action) -> None:
        self.step = step
        self.action = action

    def log(self, row) -> None:
        if row["step"] == self.step:
            self.action()

    def rows(self, rows) -> None: ...
    def finish(self, failed: bool = False) -> None: ...


def start(experiment: Experiment, path: Path, *more, stop: threading.Event | None = None):
    run = RunDir(path).open(experiment)
    return train(
        experiment,
        run,
        tiny_base(),
        sinks=[JsonlSink(run.metrics_file), *more],
        progress=False,
        stop=stop,
    )


def measured(path: Path) -> list[tuple]:
    return [(r["step"], r["loss"], r["grad_norm"]) for r in read_jsonl(RunDir(path).metrics_file)]


def bits(tree) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def undisturbed(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    params = start(tiny_experiment(texts, steps=10), path)
    return bits(params), measured(path)


def arrays(texts: Path, batch_size: int = 4, step: int = 0) -> dict[str, np.ndarray]:
    rows = Files(str(texts)).open(ByteTokenizer())
    options = {"seed": 0, "step": step, "batch_size": batch_size, "seq_len": 64}
    return make_batch(rows, Contiguous(), **options)._asdict()


def fixed_params() -> dict:
    """Parameters that no random generator of jax decides."""
    rng = np.random.default_rng(0)
    shapes = param_shapes(CONFIG)

    def draw(path, leaf):
        noise = rng.normal(0, 0.08, leaf.shape)
        return jnp.asarray(1 + noise if path[-1].key == "weight" else noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


OPTIMIZER = Optim(learning_rate=3e-3, warmup_steps=2, weight_decay=0.1).build(10)
STEP = make_step(functools.partial(batch_loss, **STATIC), OPTIMIZER)


def one_step(batch: dict, accumulate: int = 1, step=STEP):
    """params, opt_state, metrics after one step from the fixed parameters."""
    params = fixed_params()
    stacked = {k: v.reshape(accumulate, -1, v.shape[1]) for k, v in batch.items()}
    return step(params, OPTIMIZER.init(params), stacked, ROTATION)


def test_one_step_to_the_digit(texts):
    batch = arrays(texts)
    before = jax.tree.map(np.asarray, fixed_params())
    gradient = jax.jit(jax.grad(_mean))(before, batch)
    after, _, metrics = one_step(batch)
    actual = {
        "loss": float(metrics["loss"]),
        "grad_norm": float(metrics["grad_norm"]),
        "weight": float(metrics["weight"]),
        "embedding": float(jnp.abs(after["embed_tokens"]["embedding"]).sum()),
        "q_proj": float(jnp.abs(after["segments"]["0"]["self_attn"]["q_proj"]["kernel"]).sum()),
        "down_proj": float(jnp.abs(after["segments"]["0"]["mlp"]["down_proj"]["kernel"]).sum()),
    }
    expected = {
        "loss": 5.679272,
        "grad_norm": 3.850528,
        "weight": 255.0,
        "embedding": 1056.889,
        "q_proj": 524.3531,
        "down_proj": 781.4631,
    }
    assert actual == pytest.approx(expected, rel=2e-5), (
        "one training step gives other numbers: model, loss, data or optimiser have changed their "
        "meaning. If that was intended, say so in the changelog and replace the numbers; runs in "
        "progress cannot be resumed across it."
    )
    # The update by hand: the first AdamW step moves by the rate, 3e-3 / 3, times
    # g / (|g| + eps) of the clipped gradient, plus decay.
    squares = [float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(gradient)]
    norm = np.sqrt(sum(squares))
    assert actual["grad_norm"] == pytest.approx(norm, rel=1e-5)
    for (path, old), g, new in zip(
        jax.tree_util.tree_leaves_with_path(before),
        jax.tree.leaves(gradient),
        jax.tree.leaves(after),
        strict=True,
    ):
        g = np.asarray(g, np.float64) * min(1, 1 / norm)
        decay = 0.1 * old * (path[-1].key != "weight")
        expected_update = -1e-3 * (g / (np.abs(g) + 1e-8) + decay)
        # Of a smaller entry, g / |g| is rounding.
        sure = np.abs(g) > 1e-6
        np.testing.assert_allclose((new - old)[sure], expected_update[sure], atol=2e-5)


def _mean(params, batch) -> jax.Array:
    nll, sums = batch_loss(params, batch, ROTATION, **STATIC)
    return nll / sums["weight"]


def test_accumulation_is_the_step_of_the_big_batch(texts):
    batch = arrays(texts)
    batch["weights"] = batch["weights"] * np.random.default_rng(1).random((4, 64), np.float32) ** 3
    # Microbatches of very different weight.
    batch["weights"][0, 5:] = 0
    _, big_state, big = one_step(batch)
    _, small_state, small = one_step(batch, accumulate=4)
    assert small.keys() == big.keys()
    for name in big:
        assert float(small[name]) == pytest.approx(float(big[name]), rel=1e-5), name
    # The moments: the gradient and its square.
    for of_big, of_small in zip(*map(jax.tree.leaves, (big_state, small_state)), strict=True):
        np.testing.assert_allclose(of_big, of_small, rtol=1e-3, atol=1e-8)


def test_a_document_does_not_see_its_neighbour(texts):
    batch = arrays(texts, batch_size=16)
    row = next(
        i
        for i, segments in enumerate(batch["segment_ids"])
        if np.sum(segments == 1) > 8 and np.sum(segments == 2) > 8
    )
    batch = {name: value[row : row + 1].copy() for name, value in batch.items()}
    loss = jax.jit(lambda b: batch_loss(fixed_params(), b, ROTATION, **STATIC)[0])

    def loss_of(segment: int, tokens: np.ndarray) -> float:
        weights = batch["weights"] * (batch["segment_ids"] == segment)
        return float(loss({**batch, "tokens": tokens, "weights": weights}))

    changed = batch["tokens"].copy()
    changed[0, 3] = (changed[0, 3] + 50) % 259
    assert batch["segment_ids"][0, 3] == 1
    assert loss_of(2, changed) == loss_of(2, batch["tokens"]) > 0
    assert loss_of(1, changed) != loss_of(1, batch["tokens"])


def test_bfloat16_and_remat_keep_float32_parameters(texts):
    batch = arrays(texts)
    static = {**STATIC, "dtype": "bfloat16", "remat": "full"}
    bfloat16_step = make_step(functools.partial(batch_loss, **static), OPTIMIZER)
    _, _, exact = one_step(batch)
    after, opt_state, rounded = one_step(batch, step=bfloat16_step)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((after, opt_state))}
    assert dtypes == {jnp.dtype("float32"), jnp.dtype("int32")}
    for name in ("loss", "grad_norm"):
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=2e-2)
    assert float(rounded["loss"]) != float(exact["loss"])


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_stopped_run_resumes_to_the_last_bit(texts, tmp_path, undisturbed, capsys, stop_at):
    experiment = tiny_experiment(texts, steps=10)
    stop = threading.Event()
    start(experiment, tmp_path / "run", At(stop_at, stop.set), stop=stop)
    saved = find_step(tmp_path / "run" / "checkpoints")
    assert stop_at <= saved <= stop_at + 2
    assert f"stopped after step {saved} of 10, saved; resume with: " in capsys.readouterr().err
    params = start(experiment, tmp_path / "run")
    assert (bits(params), measured(tmp_path / "run")) == undisturbed


def test_a_crash_loses_the_steps_since_the_last_checkpoint_and_repeats_them(
    texts, tmp_path, undisturbed
):
    def crash() -> None:
        raise OSError("No space left on device")

    experiment = tiny_experiment(texts, steps=10)
    with pytest.raises(OSError, match="No space left"):
        start(experiment, tmp_path / "run", At(8, crash))
    assert find_step(tmp_path / "run" / "checkpoints") == 6
    assert [step for step, *_ in measured(tmp_path / "run")] == list(range(1, 9))
    params = start(experiment, tmp_path / "run")
    assert (bits(params), measured(tmp_path / "run")) == undisturbed


def test_a_finished_run_is_not_repeated_and_can_be_made_longer(texts, tmp_path, undisturbed):
    experiment = tiny_experiment(texts, steps=7)
    first = start(experiment, tmp_path / "run")
    assert bits(start(experiment, tmp_path / "run")) == bits(first)
    assert len(measured(tmp_path / "run")) == 7
    # The schedule is constant, so that more steps change none of the first seven.
    longer = tiny_experiment(texts, steps=10)
    assert (bits(start(longer, tmp_path / "run")), measured(tmp_path / "run")) == undisturbed


def test_ctrl_c_saves_and_exits_with_130(texts, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    interrupt = At(2, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        start(tiny_experiment(texts, steps=10), tmp_path / "run", interrupt)
    assert stopped.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert find_step(tmp_path / "run" / "checkpoints") == 2
    assert "resume with" in capsys.readouterr().err


@pytest.mark.check
def test_sigterm_to_a_process_and_the_same_command_again(texts, tmp_path, undisturbed):
    (tmp_path / "texts").symlink_to(texts)
    script = ROOT / "tests" / "support" / "tiny_train.py"
    command = [sys.executable, str(script), str(tmp_path), "10"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        # The second start compiles nothing.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 200
        while len(measured(tmp_path / "run")) < 2:
            if process.poll() is not None or time.monotonic() >= until:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    stopped = re.search(r"stopped after step (\d+) of 10, saved; resume with: (.*)\n", errors)
    assert stopped
    assert stopped[2].endswith(f"{tmp_path} 10")
    assert find_step(tmp_path / "run" / "checkpoints") == int(stopped[1]) < 10
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=200)
    params, step = load_params(tmp_path / "run" / "checkpoints")
    assert step == 10
    assert (bits(params), measured(tmp_path / "run")) == undisturbed


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(texts, tmp_path, monkeypatch):
    def poisoned(*args, step: int, **options):
        batch = make_batch(*args, step=step, **options)
        if step != 4:
            return batch
        return batch._replace(weights=batch.weights * np.float32("nan"))

    monkeypatch.setattr(batches, "make_batch", poisoned)
    experiment = tiny_experiment(texts, steps=10, checkpoint_every=2)
    with pytest.raises(
        NotFinite, match=r"run, step 5: loss nan, .*last good checkpoint is step 4"
    ) as caught:
        start(experiment, tmp_path / "run")
    assert "\n" not in str(caught.value)
    params, step = load_params(tmp_path / "run" / "checkpoints")
    assert step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert [step for step, *_ in measured(tmp_path / "run")] == [1, 2, 3, 4]


def test_changed_data_is_refused(tmp_path):
    data = write_texts(tmp_path / "texts")
    start(tiny_experiment(data, steps=10), tmp_path / "run")
    (data / "3.txt").write_text("something else")
    with pytest.raises(ValueError, match="was started with other data"):
        start(tiny_experiment(data, steps=10), tmp_path / "run")


@dataclasses.dataclass(frozen=True)
class Recorded(RopeScaling):
    """A length-dependent scaling that records the lengths it is asked for."""

    depends_on_length = True
    lengths = []

    def rope(self, base, seq_len):
        self.lengths.append(seq_len)
        return Unscaled().rope(base, seq_len)


@dataclasses.dataclass(frozen=True)
class Far(Contiguous):
    def sample(self, rng, shape):
        return (super().sample(rng, shape) + 100).astype(np.int32)


def test_a_length_dependent_scaling_is_asked_for_the_positions_that_were_drawn(texts, tmp_path):
    experiment = dataclasses.replace(
        tiny_experiment(texts, steps=10), rope=Recorded(), positions=Far()
    )
    start(experiment, tmp_path / "run")
    assert Recorded.lengths == [164]


@pytest.mark.parametrize(
    ("rope", "positions", "seq_len", "declared"),
    [
        (ABF(5e5), Contiguous(), 256, 256),
        (None, Contiguous(), 256, 256),
        (ABF(5e5), PoSE(1024), 64, 1024),
        (Linear(2.0), PoSE(100), 64, 128),
        (ABF(5e5), Contiguous(), 32, 64),
    ],
)
def test_a_run_declares_the_context_that_it_trained(rope, positions, seq_len, declared, tmp_path):
    """Where no factor says it: the rows, or how far positions reach; an export declares the same.

    The window of pre-training is 64 tokens.
    """
    base = LM(llamas.TINY, llamas.random_params(), llamas.tokenizer())
    experiment = tiny_experiment(tmp_path / "texts", seq_len=seq_len)
    experiment = dataclasses.replace(experiment, model=None, rope=rope, positions=positions)
    run = RunDir(tmp_path / "run").open(experiment)
    rows = SimpleNamespace(provenance=lambda: {})
    loop._record_start(experiment, run, base, rows, {})  # pyright: ignore[reportArgumentType]
    context = read_context(run.path)
    assert context.declared == declared
    scaling = read_config(run.path)[1]
    lm = dataclasses.replace(base, scaling=scaling, declared_context=context)
    out = export(lm, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == declared


def test_dropout_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    base = tiny_base()
    base = dataclasses.replace(base, config=dataclasses.replace(base.config, attention_dropout=0.1))
    experiment = tiny_experiment(write_texts(tmp_path / "texts"))
    with pytest.raises(ValueError, match="attention_dropout 0.1 is not applied"):
        train(experiment, RunDir(tmp_path / "run").open(experiment), base)
