"""What the README shows is what happens."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ctxext.cli.main import main
from ctxext.rope import RopeBase

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_method_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = [block for block in python_blocks(README) if block.startswith("# mine.py")]
    (tmp_path / "mine.py").write_text(source)
    assert main(["rope", f"{tmp_path / 'mine.py'}:HalfPI", "--factor", "4", "--json"]) == 0
    inv_freq = json.loads(capsys.readouterr().out)["inv_freq"]
    plain = RopeBase(128, 10000.0, 4096).inv_freq
    assert inv_freq[:32] == plain[:32].tolist() and inv_freq[32:] == (plain[32:] / 4).tolist()


def test_the_commands_of_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    named = set(re.findall(r"^(?:\| `)?ctxext ([a-z]+)", README, re.MULTILINE))
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = set(re.findall(r"^ {4}([a-z]+)\b", capsys.readouterr().out, re.MULTILINE))
    assert named == shown


@pytest.mark.check
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    code = "\n".join(block for block in python_blocks(README) if block.startswith("import ctxext"))
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:ctxext"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
