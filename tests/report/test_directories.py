"""The directory of a sweep in place of run directories."""

import pytest

from ctxext.cli.main import main
from ctxext.report import run_directories
from support.planted import passkey_record, write_records


def run_in(path, *, finished=True):
    write_records(path, [passkey_record("none", 0, 256, 0.5, i, True) for i in range(4)])
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


def test_a_sweep_without_a_finished_run_is_named(tmp_path):
    run_in(tmp_path / "sweep" / "a", finished=False)
    with pytest.raises(ValueError, match="holds 1 runs, and none has finished"):
        run_directories([tmp_path / "sweep"])


def test_another_directory_is_left_to_those_that_read_it(tmp_path):
    missing = tmp_path / "missing"
    assert run_directories([tmp_path, missing]) == ([tmp_path, missing], [])
