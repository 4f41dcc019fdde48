"""When a run saves and stops, and which rows of a batch a process makes."""

import dataclasses
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from ctxext.data import Files, make_batch
from ctxext.experiment import Train
from ctxext.parallel import distributed
from ctxext.positions import Contiguous
from ctxext.rundir import RunDir
from ctxext.training import stopping
from ctxext.training.checksums import recorded_facts
from ctxext.training.loop import train
from ctxext.training.stopping import StoppingPolicy
from support.tiny_train import ByteTokenizer, tiny_base, tiny_experiment, write_texts

SETTINGS = Train(steps=100, seq_len=8, batch_size=1, checkpoint_every=10)


def test_a_run_stops_by_steps_by_signals_and_by_the_caller() -> None:
    received = []
    stop = threading.Event()
    policy = StoppingPolicy(SETTINGS, received, stop)
    assert policy.after(9) == (False, False)
    assert policy.after(10) == (True, False)
    assert policy.after(100) == (True, False)
    assert policy.exit_code() is None
    stop.set()
    assert policy.after(11) == (True, True)
    assert policy.exit_code() is None
    received.append(signal.SIGINT)
    assert policy.after(11) == (True, True)
    assert policy.exit_code() == 130
    received[0] = signal.SIGTERM
    assert policy.exit_code() == 0


def test_by_minutes_since_the_last_checkpoint(monkeypatch) -> None:
    now = 1000.0
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now)
    policy = StoppingPolicy(dataclasses.replace(SETTINGS, checkpoint_minutes=0.5), [], None)
    saves = []
    for step in range(1, 15):
        now += 12
        save, _ = policy.after(step)
        if save:
            saves.append(step)
    assert saves == [3, 6, 9, 10, 13]


def test_all_processes_do_the_largest_request(monkeypatch) -> None:
    others = stopping.Request.NOTHING
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    monkeypatch.setattr(distributed, "all_reduce_max", lambda mine: max(mine, others))
    minutes = dataclasses.replace(SETTINGS, checkpoint_minutes=1e-9)
    policy = StoppingPolicy(minutes, [], None)

    def next_step() -> tuple[bool, bool]:
        policy.poll()
        return policy.after(3)

    # Only the primary process looks at the clock.
    assert next_step() == (False, False)
    others = stopping.Request.SAVE
    assert next_step() == (True, False)
    others = stopping.Request.TERMINATE
    assert next_step() == (True, True)
    assert policy.exit_code() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_minutes": 0.0}, "train.checkpoint_minutes must be above 0, got 0.0"),
        ({"keep": 0}, "train.keep must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)


@pytest.mark.check
def test_a_run_keeps_as_many_checkpoints_as_set_with_their_mean_loss(tmp_path: Path) -> None:
    experiment = tiny_experiment(
        write_texts(tmp_path / "texts"), steps=8, checkpoint_every=2, keep=3
    )
    losses: list[float] = []

    class Sink:
        def log(self, row: dict) -> None:
            losses.append(row["loss"])

        def rows(self, rows: list) -> None: ...
        def finish(self, failed: bool = False) -> None: ...

    run = RunDir(tmp_path / "run").open(experiment)
    train(experiment, run, tiny_base(), sinks=[Sink()], progress=False)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["4", "6", "8"]
    for step in (4, 6, 8):
        mean = sum(losses[step - 2 : step]) / 2
        assert recorded_facts(run.checkpoints / str(step)) == {"loss": pytest.approx(mean)}


def test_a_process_makes_its_own_rows_and_the_positions_of_all(tmp_path: Path) -> None:
    rows = Files(str(write_texts(tmp_path / "texts"))).open(ByteTokenizer())
    options = {"seed": 0, "step": 5, "batch_size": 6, "seq_len": 32}
    everything = make_batch(rows, Contiguous(), **options)
    own = make_batch(rows, Contiguous(), **options, own={1, 4})
    np.testing.assert_array_equal(own.positions, everything.positions)
    for name in ("tokens", "targets", "weights", "segment_ids"):
        own_rows = getattr(own, name)
        all_rows = getattr(everything, name)
        assert own_rows.dtype == all_rows.dtype
        assert all_rows.any(axis=1).all()
        np.testing.assert_array_equal(own_rows[[1, 4]], all_rows[[1, 4]])
        assert not own_rows[[0, 2, 3, 5]].any()
