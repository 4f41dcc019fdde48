"""The wheel runs the demo by itself, in an empty environment and an empty directory."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ctxext.evals.record import read_records

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.check


def call(*command: str | Path, cwd: Path, seconds: int = 600) -> str:
    """Standard output of a command that must succeed, without this process's Python or jax
    settings."""
    hidden = ("PYTHON", "JAX_", "XLA_", "WANDB_", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "offline"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # Built from the source distribution, so that this is checked for completeness too.
    call(sys.executable, "-m", "build", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    assert len(list(out.glob("*.tar.gz"))) == 1
    return built


def test_the_wheel_contains_only_the_package_and_the_model(wheel: Path) -> None:
    assert wheel.stat().st_size < 10e6
    names = set(zipfile.ZipFile(wheel).namelist())
    model = {f"ctxext/assets/tiny-llama/{name}" for name in ("config.json", "tokenizer.model")}
    assert {"ctxext/__init__.py", "ctxext/py.typed", "ctxext/cli/main.py", *model} <= names
    assert any(
        re.fullmatch(r"ctxext/assets/tiny-llama/model.*\.safetensors", name) for name in names
    )
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ctxext"}
    pages = {"page.html", "chart.html", "macros.html", "style.css"}
    assert {f"ctxext/report/pages/{name}" for name in pages} <= names
    assert "ctxext/report/drawing/chart.css" in names
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ctxext").rglob("*.py")}
    assert tracked == {name for name in names if name.endswith(".py")}


def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    call(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    pins = ROOT / "constraints" / ("py312.txt" if sys.version_info >= (3, 12) else "py311.txt")
    call(
        venv / "bin/python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",  # the demo imports a small part of it
        "--constraint",
        pins,
        wheel,
        cwd=tmp_path,
        seconds=900,
    )
    installed = call(venv / "bin/python", "-c", "import ctxext; print(ctxext.__file__)", cwd=empty)
    assert Path(installed.strip()).is_relative_to(venv)

    # As many stages as the demo has, each with less to do.
    smaller = ("--train.steps", "2", "--budget", "1")
    out = call(
        venv / "bin/ctxext",
        "demo",
        *smaller,
        cwd=empty,
        seconds=1200,
    )
    paths = dict(re.findall(r"^(export|records|run directory) +(\S+)$", out, re.MULTILINE))
    assert set(paths) == {"export", "records", "run directory"}, out
    assert all((empty / path).exists() for path in paths.values())
    assert [path.name for path in empty.iterdir()] == ["runs"], "the demo wrote outside of runs/"
    export = empty / paths["export"]
    assert json.loads((export / "config.json").read_text())["model_type"] == "llama"
    assert json.loads((export / "proof.json").read_text())["equal"] is True
    records = read_records(empty / paths["records"])
    assert {record.evaluation for record in records} == {"retrieval", "ppl"}
    assert len({record.model.label for record in records}) >= 5
    assert "yarn" in out and "%" in out
