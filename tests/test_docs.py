"""What the README and the notebook show is what happens."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ctxext.cli import main
from ctxext.rope import RopeBase

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NOTEBOOK = ROOT / "notebooks" / "quickstart"


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def percent_cells(text: str) -> list[tuple[str, str]]:
    """(kind, source) of the cells of a script in percent format, the header left out."""
    cells = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, source = part.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        source = re.sub(r"^# ?", "", source, flags=re.MULTILINE) if kind == "markdown" else source
        cells.append((kind, source.strip()))
    return cells


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


def test_the_notebook_is_the_script() -> None:
    notebook = json.loads(NOTEBOOK.with_suffix(".ipynb").read_text())
    cells = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    assert cells == percent_cells(NOTEBOOK.with_suffix(".py").read_text()), (
        "jupytext --to ipynb notebooks/quickstart.py"
    )
    assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.check
@pytest.mark.parametrize("what", ["README", "notebook"])
def test_the_python_shown_runs(what: str, tmp_path: Path) -> None:
    blocks = [block for block in python_blocks(README) if block.startswith("import ctxext")]
    code = "\n".join(blocks) if what == "README" else NOTEBOOK.with_suffix(".py").read_text()
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:ctxext"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert what == "README" or ("YaRN" in done.stdout and "%" in done.stdout)
