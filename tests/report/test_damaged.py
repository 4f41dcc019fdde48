"""`ctxext report` on damaged and foreign files: one line that names the file, and no page."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ctxext.cli.main import main
from ctxext.evals.record import LossRecord
from support.planted import planted_records, planted_run

REMOVED = object()
NAN = float("nan")
INFINITE = float("inf")
HUGE = 2**70
MANY_DIGITS = "9" * 5000
CONFIG = "config.json"
PROOF = "export/proof.json"
METRICS = "metrics.jsonl"
RECORDS = "records.jsonl"
ANSWER = 0
LOSSES = 2
"""Numbers of the lines of records.jsonl."""

DAMAGE: list[tuple[str, tuple[str | int, ...], Any]] = [
    (CONFIG, (), []),
    (CONFIG, (), "a text"),
    (CONFIG, (), None),
    (CONFIG, ("name",), 3),
    (CONFIG, ("train",), None),
    (CONFIG, ("train",), [1]),
    (CONFIG, ("train", "seq_len"), "1024"),
    (CONFIG, ("train", "seq_len"), -1),
    (CONFIG, ("train", "seq_len"), HUGE),
    (CONFIG, ("train", "steps"), NAN),
    (CONFIG, ("train", "batch_size"), True),
    (CONFIG, ("zero_shot",), 1.5),
    (CONFIG, ("expect",), "x"),
    (CONFIG, ("expect",), [{"__type__": "no such type"}]),
    (CONFIG, ("expect",), [{"__type__": MANY_DIGITS}]),
    (CONFIG, ("expect",), [1]),
    (CONFIG, ("rope",), "yarn"),
    (CONFIG, ("seed",), -1),
    ("baselines/none/config.json", ("train", "steps"), "x"),
    ("provenance.json", (), 1),
    ("provenance.json", ("versions",), "x"),
    ("provenance.json", ("versions", "jax"), 4),
    (PROOF, (), "EQUAL"),
    (PROOF, ("equal",), 1),
    (PROOF, ("positions",), None),
    (PROOF, ("positions",), "x"),
    (PROOF, ("positions",), [0]),
    (PROOF, ("positions", 0), None),
    (PROOF, ("readers",), {"a": 1}),
    (PROOF, ("readers",), None),
    (PROOF, ("readers", 0), 1),
    (PROOF, ("readers", 0, "inv_freq"), "x"),
    (PROOF, ("readers", 0, "inv_freq"), NAN),
    (PROOF, ("readers", 0, "tables"), True),
    (PROOF, ("readers", 0, "tables"), [1]),
    (PROOF, ("readers", 0, "logits", 0), {}),
    (PROOF, ("readers_not_run",), []),
    (PROOF, ("weights_that_differ",), [1]),
    (METRICS, (0,), None),
    (METRICS, (0,), 1),
    (METRICS, (0, "step"), None),
    (METRICS, (0, "step"), INFINITE),
    (METRICS, (0, "step"), REMOVED),
    (METRICS, (0, "loss"), "x"),
    (METRICS, (1, "loss"), NAN),
    (METRICS, (1, "loss"), [1]),
    (RECORDS, (ANSWER, "kind"), []),
    (RECORDS, (ANSWER, "kind"), {}),
    (RECORDS, (ANSWER, "cluster"), MANY_DIGITS),
    (RECORDS, (ANSWER, MANY_DIGITS), 1),
    (RECORDS, (ANSWER, "question", "needles"), MANY_DIGITS),
    (RECORDS, (ANSWER, "scores", "failure"), "no such mistake"),
    (RECORDS, (ANSWER, "scores", "correct"), False),
    (RECORDS, (ANSWER, "model", "window"), -1),
    (RECORDS, (ANSWER, "model", "window"), 0),
    (RECORDS, (ANSWER, "model", "steps"), -5),
    (RECORDS, (ANSWER, "seq_len"), -1),
    (RECORDS, (ANSWER, "seq_len"), HUGE),
    (RECORDS, (ANSWER, "question", "distance"), -1),
    (RECORDS, (ANSWER, "scores", "answer_nll"), NAN),
    (RECORDS, (ANSWER, "scores", "score"), 7),
    (RECORDS, (LOSSES, "scores", "nll"), HUGE),
    (RECORDS, (LOSSES, "scores", "nll"), NAN),
    (RECORDS, (LOSSES, "scores", "count"), -1),
    (RECORDS, (LOSSES, "scores", "count"), HUGE),
]
"""(file, the place in it, the value that is written there)."""
BYTES = {
    (CONFIG, b"\xff\xfe"),
    (CONFIG, b""),
    (CONFIG, b"[" * 100_000),
    (METRICS, b"\x00\n"),
    (RECORDS, b"PK\x03\x04\n"),
    (RECORDS, b"[" * 100_000 + b"\n"),
    (PROOF, b"<html>"),
}
"""(file, its contents)."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = planted_records()
    answers = [record for record in records if not isinstance(record, LossRecord)][:2]
    losses = [record for record in records if isinstance(record, LossRecord)][:1]
    return planted_run(tmp_path_factory.mktemp("damaged") / "run", [*answers, *losses])


def _changed(value: Any, place: tuple[str | int, ...], new: Any) -> Any:
    if not place:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if new is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return value


def check_refused(run: Path, file: str, content: bytes, capsys: Any) -> None:
    path = run / file
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        status = main(["report", str(run)])
    finally:
        path.write_bytes(original)
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("ctxext: ")
    assert error.count("\n") == 1
    assert str(path) in error
    assert len(error) < 600
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(("file", "place", "new"), DAMAGE)
def test_a_damaged_value_is_one_line(run: Path, file: str, place: Any, new: Any, capsys):
    text = (run / file).read_text()
    if file.endswith(".jsonl"):
        lines = [json.loads(line) for line in text.splitlines()]
        lines = _changed(lines, place, new)
        content = "".join(json.dumps(line) + "\n" for line in lines)
    else:
        content = json.dumps(_changed(json.loads(text), place, new))
    check_refused(run, file, content.encode(), capsys)


@pytest.mark.parametrize(("file", "content"), sorted(BYTES), ids=str)
def test_a_foreign_file_is_one_line(run: Path, file: str, content: bytes, capsys):
    check_refused(run, file, content, capsys)


def test_foreign_paths_are_one_line(run: Path, tmp_path: Path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / RECORDS).unlink()
    (tmp_path / "run" / RECORDS).mkdir()
    (tmp_path / "file").write_text("x")
    for path in ("run", "file", "missing"):
        assert main(["report", str(tmp_path / path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(tmp_path / path) in error


def test_the_undamaged_run_has_a_page(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").exists()


def test_the_experiment_of_a_run_is_not_executed(run: Path, tmp_path: Path, capsys):
    """Only a file that the user names is an experiment to run."""
    shutil.copytree(run, tmp_path / "run")
    marker = tmp_path / "executed"
    (tmp_path / "run" / "experiment.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    assert main(["report", str(tmp_path / "run")]) == 0
    # For want of a checkpoint.
    assert main(["generate", str(tmp_path / "run"), "--prompt", "x"]) == 2
    assert not marker.exists()
    assert main(["run", str(tmp_path / "run" / "experiment.py"), "--dry-run"]) == 2
    assert marker.exists()
