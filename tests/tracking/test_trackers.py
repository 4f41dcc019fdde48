"""TensorBoard's event files and trackio's database, read back; heatmaps; unknown trackers."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ctxext import report, tracking
from ctxext.report.drawing.colours import diverging, sequential
from ctxext.report.drawing.heatmap import Cell, Heatmap
from ctxext.report.drawing.raster import CELL, LABEL, LINE, draw
from ctxext.rundir import RunDir
from ctxext.tracking import start_sinks
from support.planted import passkey_answer, text_losses
from support.tiny_train import tiny_experiment

EVENTS = [
    {"step": 10, "loss": 2.0, "mfu": 0.5},
    {"step": 20, "short_loss": 3.0, "alarm": "step 20: worse"},
]
RECORDS = [text_losses("yarn", n, 0, nll=2.0 + n, count=1) for n in (64, 128)]
PIXELS = np.full((8, 12, 3), 200, np.uint8)


def run_with_tracker(tmp_path: Path, tracker: str, events: list[dict]) -> Path:
    experiment = tiny_experiment(tmp_path / "texts")
    run = RunDir(tmp_path / "run").open(experiment)
    with start_sinks(experiment, run, track=[tracker]) as sinks:
        for sink in sinks:
            for event in events:
                sink.log(event)
            sink.records(RECORDS)
            sink.images(lambda: {"passkey/yarn": PIXELS})
            sink.artifact("export", [run.path], {})
    return run.path


def tf_records(file: Path) -> list[bytes]:
    """The contents of a TFRecord file: each is length, checksum, data, checksum."""
    data = file.read_bytes()
    contents = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        contents.append(data[12 : 12 + size])
        data = data[16 + size :]
    return contents


def test_tensorboard_files_hold_the_run(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    def events(kind: str) -> list[list]:
        files = sorted((tmp_path / "run" / "tensorboard" / kind).glob("events.out.tfevents.*"))
        return [[Event.FromString(record) for record in tf_records(file)] for file in files]

    run_with_tracker(tmp_path, "tensorboard", EVENTS)
    values = {
        (value.tag, event.step): value
        for kind in ("train", "eval")
        for event in events(kind)[0]
        for value in event.summary.value
    }
    assert values["train/loss", 10].simple_value == 2
    assert values["train/mfu", 10].simple_value == 0.5
    assert values["train/short_loss", 20].simple_value == 3
    assert [values["eval/ppl/yarn/nll", n].simple_value for n in (64, 128)] == [66, 130]
    (alarm,) = (value for (tag, _), value in values.items() if tag.startswith("alarm"))
    assert alarm.tensor.string_val == [b"step 20: worse"]
    (picture,) = (v.image for (tag, _), v in values.items() if tag == "heatmaps/passkey/yarn")
    assert (picture.height, picture.width) == (8, 12)
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    time.sleep(1.1)  # the name of a file holds its second
    # Resumed from an older checkpoint, TensorBoard hides the steps that came after it.
    run_with_tracker(tmp_path, "tensorboard", [{"step": 15, "loss": 1.0}])
    resumed_at = {
        kind: [event.step for event in events(kind)[1] if event.HasField("session_log")]
        for kind in ("train", "eval")
    }
    assert resumed_at == {"train": [15], "eval": [0]}
    assert not capsys.readouterr().err


def test_trackio_s_database_holds_the_run(tmp_path):
    pytest.importorskip("trackio")
    code = """
from pathlib import Path
from tracking.test_trackers import EVENTS, run_with_tracker
run_with_tracker(Path("."), "trackio", EVENTS)
run_with_tracker(Path("."), "trackio", [{"step": 30, "loss": 1.0}])
print("the end")
"""
    folders = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "PYTHONPATH": os.pathsep.join(folders),
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "the end\n"
    assert "off for the rest" not in result.stderr
    with sqlite3.connect(tmp_path / "trackio" / "ctxext.db") as database:
        rows = database.execute(
            "select run_name, run_id, step, metrics from metrics order by id"
        ).fetchall()
        ((text,),) = database.execute("select text from alerts").fetchall()
    assert {name for name, *_ in rows} == {"run"}
    assert len({run_id for _, run_id, *_ in rows}) == 1
    logged = [(step, json.loads(metrics)) for *_, step, metrics in rows]
    losses = [(step, row["train/loss"]) for step, row in logged if "train/loss" in row]
    assert losses == [(10, 2.0), (30, 1.0)]
    assert [row["eval/ppl/yarn/nll"] for _, row in logged if "eval/seq_len" in row] == 2 * [66, 130]
    assert text == "step 20: worse"
    assert any("heatmaps/passkey/yarn" in row for _, row in logged)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("wandb,mlflow", "no tracker 'mlflow'; known: wandb, tensorboard, trackio"),
        ("aim", "no tracker 'aim'"),
    ],
)
def test_unknown_trackers_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        tracking.parse_names(names)
    assert tracking.parse_names("wandb,wandb") == ("wandb",)
    assert tracking.parse_names("") == ()


def test_a_missing_extra_is_named(monkeypatch):
    tracker = tracking.Tracker("", "no_such_package", "tensorboard")
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", tracker)
    message = r"needs no_such_package: pip install 'ctxext\[tensorboard\]'"
    with pytest.raises(ValueError, match=message):
        tracking.parse_names("tensorboard")


def colour(pixels: np.ndarray) -> str:
    return "#" + "".join(f"{value:02x}" for value in pixels)


def test_a_heatmap_s_pixels_are_the_page_s_colours():
    top = [Cell("12/12", "76\u2013100 %", *sequential(1.0), False), None]
    bottom = [
        Cell("0/3", "0\u201356 %", *sequential(0.0), True),
        Cell("+5", "2 : 1 of 8", *diverging(0.4), False),
    ]
    heat = Heatmap(
        "yarn", "depth", ["64 (1x)", "128 (2x)"], [("0", top)], below=[("floor", bottom)]
    )
    pixels = draw(heat)
    assert pixels.dtype == np.uint8
    assert pixels.shape[0] == 2 * LINE + 2 * CELL[1] + 6

    def corner(column: int, row: int) -> str:
        return colour(pixels[2 * LINE + CELL[1] * row + 3, LABEL + CELL[0] * column + 3])

    assert corner(0, 0) == sequential(1.0)[0]
    assert corner(1, 0) == "#ffffff"
    assert corner(0, 1) == sequential(0.0)[0]
    assert corner(1, 1) == diverging(0.4)[0]
    # The first cell shows text on its background.
    first = pixels[2 * LINE + 2 : 2 * LINE + CELL[1] - 2, LABEL + 2 : LABEL + CELL[0] - 2]
    colours, counts = np.unique(first.reshape(-1, 3), axis=0, return_counts=True)
    shares = dict(zip(map(colour, colours), counts / counts.sum(), strict=True))
    background, text = sequential(1.0)[:2]
    assert shares[background] > 0.75
    assert shares[text] > 0.004


def test_heatmaps_of_records_are_by_task_and_variant():
    records = [
        passkey_answer(method, n, i, i < 5)
        for method in ("none", "yarn")
        for n in (128, 256)
        for i in range(9)
    ]
    assert list(report.heatmaps(records)) == ["passkey/none", "passkey/yarn"]
