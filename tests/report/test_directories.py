"""The directory of a sweep in place of run directories."""

import json
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.report import choose_runs, run_directories
from support.planted import passkey_record, write_records


def run_in(path, *, finished=True, steps=0):
    write_records(path, [passkey_record("none", steps, 256, 0.5, i, True) for i in range(4)])
    if finished:
        (path / "budget.json").write_text('{"budget": "full", "evaluations": []}')
    return path


def test_a_sweep_stands_for_its_finished_runs(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    runs = [run_in(sweep / name) for name in ("b", "a")]
    run_in(sweep / "c", finished=False)
    (sweep / "sweep.json").write_text("{}")
    (sweep / "logs").mkdir()
    found = run_directories([sweep, runs[0]])
    assert found == ([sweep / "a", sweep / "b", sweep / "b"], ["c"])
    assert main(["report", str(sweep)]) == 0
    output = capsys.readouterr()
    assert "left out, not finished: c" in output.err
    assert (sweep / "report.html").is_file()


def test_of_several_runs_those_that_are_not_finished_are_left_out(tmp_path, monkeypatch, capsys):
    """As of `runs/sweep/*`: they have planned evaluations, and have not ended them."""
    monkeypatch.chdir(tmp_path)
    sweep = Path("sweep")
    runs = [run_in(sweep / name) for name in ("a", "b")]
    for name, kind in (("killed", "evaluate"), ("trained", "train")):
        runs.append(run_in(sweep / name, finished=False, steps=60))
        (runs[-1] / "stages.json").write_text(json.dumps({"stages": [{"kind": kind}]}))
    (sweep / "killed.log").write_text("")
    assert main(["report", *map(str, sorted(sweep.iterdir()))]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "left out, no run: sweep/killed.log",
        "left out, not finished: sweep/killed",
    ]
    assert said.out.endswith("page: sweep/report.html\n")
    page = (sweep / "report.html").read_text()
    assert "(killed)" not in page and "(trained)" in page
    # Where there is no other, it is said before its numbers.
    lines = ["not finished, so that this is what was measured until now: sweep/killed"]
    assert choose_runs([sweep / "killed"]) == ([sweep / "killed"], lines)


def test_a_sweep_without_a_finished_run_is_named(tmp_path):
    run_in(tmp_path / "sweep" / "a", finished=False)
    with pytest.raises(ValueError, match="holds 1 runs, and none has finished"):
        run_directories([tmp_path / "sweep"])


def test_another_directory_is_left_to_those_that_read_it(tmp_path):
    missing = tmp_path / "missing"
    assert run_directories([tmp_path, missing]) == ([tmp_path, missing], [])
