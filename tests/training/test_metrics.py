"""The speed of a run is that of finished steps, by clocks that are not its own."""

import re
import time

import jax
import jax.numpy as jnp
import pytest

from ctxext.data import Stdlib
from ctxext.files import read_jsonl
from ctxext.rundir import RunDir
from ctxext.tracking import JsonlSink
from ctxext.training import loop, metrics
from ctxext.training.progress import TrainProgress
from support.tiny_train import tiny_base, tiny_experiment, write_texts

TOKENS_PER_STEP = 4 * 64
"""Four rows of 64 tokens."""


class Device:
    """A clock, and steps that take `seconds` each, one after another.

    A host either waits for each step that it starts, or goes on at once and waits where it reads a
    value, as on an accelerator.
    """

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.now = 100.0
        self.free_at = 100.0

    def start(self, seconds: float) -> dict:
        self.free_at = max(self.now, self.free_at) + seconds
        if self.waits:
            self.now = self.free_at
        return dict.fromkeys(("loss", "grad_norm", "weight"), Pending(self, self.free_at))


class Pending:
    """The value 1, once the clock has reached a time."""

    def __init__(self, device: Device, ready_at: float) -> None:
        self.device = device
        self.ready_at = ready_at

    def __float__(self) -> float:
        self.device.now = max(self.device.now, self.ready_at)
        return 1.0


def speeds(rows) -> dict[int, float]:
    return {r["step"]: r["tokens_per_second"] for r in rows if "tokens_per_second" in r}


@pytest.mark.parametrize("waits", [True, False], ids=["host waits", "host runs ahead"])
@pytest.mark.parametrize("log_every", [1, 2, 4])
def test_speed_is_that_of_finished_steps_without_the_first_and_excluded_time(
    monkeypatch, waits, log_every
):
    device = Device(waits=waits)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: device.now)
    monkeypatch.setattr(metrics, "peaks", lambda: {"host_peak_gib": 2.5})
    rows = []
    experiment = tiny_experiment(Stdlib("train"), steps=9, log_every=log_every)
    meter = metrics.Metrics(experiment, rows.append, seconds_at_peak=0.5)
    for step in range(1, 10):
        values = device.start(60 if step == 1 else 2)
        meter.record(step, values)
        if step == 6:
            with meter.exclude():
                device.now = max(device.now, device.free_at) + 1000
    meter.flush()
    logged = [step for step in range(1, 10) if step % log_every == 0 or step in (1, 9)]
    assert [row["step"] for row in rows if "learning_rate" in row] == logged
    assert speeds(rows) == pytest.approx(dict.fromkeys(logged[1:], TOKENS_PER_STEP / 2))
    assert {row["mfu"] for row in rows if "mfu" in row} == {0.25}
    peaks = {row["step"]: row["host_peak_gib"] for row in rows if "host_peak_gib" in row}
    assert peaks == dict.fromkeys(logged, 2.5)


def test_a_resumed_process_leaves_out_its_own_first_step(monkeypatch):
    device = Device(waits=True)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: device.now)
    rows = []
    meter = metrics.Metrics(tiny_experiment(Stdlib("train"), steps=9, log_every=4), rows.append)
    for step in range(6, 10):
        meter.record(step, device.start(60 if step == 6 else 2))
    meter.flush()
    assert speeds(rows) == pytest.approx(dict.fromkeys((8, 9), TOKENS_PER_STEP / 2))


@pytest.mark.parametrize("log_every", [1, 2])
def test_logged_speeds_of_a_run_are_those_of_a_clock_next_to_its_steps(
    tmp_path, monkeypatch, log_every
):
    """Every logged speed, the last one too, against the times at which steps were done."""
    finished = [float("nan")]
    make_step = loop.compiled_step

    def timed_step(*arguments):
        step = make_step(*arguments)

        def step_and_wait(*state):
            out = jax.block_until_ready(step(*state))
            time.sleep(0.06)
            finished.append(time.perf_counter())
            return out

        return step_and_wait

    monkeypatch.setattr(loop, "compiled_step", timed_step)
    texts = write_texts(tmp_path / "texts")
    experiment = tiny_experiment(texts, steps=7, log_every=log_every, checkpoint_every=5)
    run = RunDir(tmp_path / "run").open(experiment)
    sinks = [JsonlSink(run.metrics_file)]
    loop.train(experiment, run, tiny_base(), sinks=sinks, progress=False)
    logged = [step for step in range(1, 8) if step % log_every == 0 or step in (1, 7)]
    expected = {
        step: TOKENS_PER_STEP * (step - last) / (finished[step] - finished[last])
        for last, step in zip(logged[:-1], logged[1:], strict=True)
    }
    assert speeds(read_jsonl(run.metrics_file)) == pytest.approx(expected, rel=0.4)


def test_a_value_that_is_not_finite_is_reported_with_its_step():
    experiment = tiny_experiment(Stdlib("train"), steps=9, log_every=4)
    meter = metrics.Metrics(experiment, lambda row: None)
    values = {name: jnp.float32(1) for name in ("loss", "grad_norm", "weight")}
    meter.record(1, values)
    meter.record(2, {**values, "loss": jnp.float32("nan")})
    with pytest.raises(metrics.NotFinite, match="step 2: loss nan"):
        meter.record(3, values)


def test_the_speed_and_its_share_of_the_peak_are_said_once_they_are_known(capsys):
    progress = TrainProgress("tiny", 0, 12, enabled=True)
    logged = {"loss": 2.0, "learning_rate": 0.1}
    progress.update({"step": 1, **logged})
    progress.update({"step": 2, **logged, "tokens_per_second": 1234.5})
    progress.update({"step": 3, **logged, "tokens_per_second": 1234.5, "mfu": 0.416})
    lines = [re.sub(r"  \d+ s left", "", x) for x in capsys.readouterr().err.splitlines()]
    assert lines == [
        "tiny: step 1/12  loss 2.0000",
        "tiny: step 2/12  loss 2.0000  1,234 tokens/s",
        "tiny: step 3/12  loss 2.0000  1,234 tokens/s  MFU 42%",
    ]


def test_the_time_left_does_not_count_the_compilation(monkeypatch, capsys):
    """A first step of 60 seconds, then one a second: ten steps take nine, not an hour."""
    now = [0.0]
    monkeypatch.setattr("ctxext.training.progress.time.perf_counter", lambda: now[0])
    progress = TrainProgress("tiny", 0, 12, enabled=True)
    for step, seconds in ((1, 60.0), (2, 61.0), (3, 62.0)):
        now[0] = seconds
        progress.update({"step": step, "loss": 1.0, "learning_rate": 0.1})
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("1.0000")[2].strip() for line in lines] == ["", "10 s left", "9 s left"]
