"""Every notebook equals its script and runs; its output contains numbers that were computed
independently."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from ctxext.report import drawings, write_report
from support import notebook_cells
from support.html_page import parse
from support.planted import planted_run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
# Patterns that each notebook prints, and its number of figures.
SHOWN = {
    "01_frequencies": (
        [
            r"18 of them never complete a turn",
            r"attention factor +1.0000 +1.0000 +1.0000 +1.0693",
            r"63 +0.08 +1.000 +0.500 +0.500 +0.500",
        ],
        2,
    ),
    "02_extend": (
        [
            r"yarn\(factor=4, beta_fast=8\) after \d+ steps: effective context",
            "equal: True; read by numpy",
        ],
        2,
    ),
    "03_your_method": ([r"Step\(factor=4.0\)", r"step\(factor=4\) +\d+/20"], 2),
    "04_honest_evaluation": (
        [r"4 of 5 +80 % +\[38, 96\]", "no needle", r"truncate +\d", ": disagrees."],
        3,
    ),
    "05_llama2_8k": (
        [
            "6,738,415,616",
            r"h100-80 \(arithmetic\): fits",
            "'factor': 2.0",
            "read by numpy, transformers",
        ],
        2,
    ),
    "quickstart": (["YaRN", "%"], 0),
}
FOR_SLOW = "05_llama2_8k"
"""Takes longest; what it does, a recipe on weights of that form, others do in `make check`."""
# What is computed less of in `make check` than the notebook says; `make slow` runs it as it is.
SMALLER = {
    "02_extend": {"steps=48": "steps=4", "n=4)": "n=1)"},
    "04_honest_evaluation": {"max_tokens=4 * window": "max_tokens=3 * window"},
}


def smaller(name: str) -> str:
    """The script of a notebook with less to compute."""
    text = (FOLDER / f"{name}.py").read_text()
    for much, less in SMALLER.get(name, {}).items():
        assert text.count(much) == 1, much
        text = text.replace(much, less)
    return text


def test_every_script_has_a_notebook_and_expectations() -> None:
    assert set(SHOWN) == set(SCRIPTS) == {path.stem for path in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_notebook_equals_its_script(name: str) -> None:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    cells = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook["cells"]]
    script = notebook_cells.cells((FOLDER / f"{name}.py").read_text())
    assert cells == script, f"jupytext --to ipynb notebooks/{name}.py"
    assert not any(cell.get("outputs") for cell in notebook["cells"])


def stand_in(folder: Path) -> dict[str, str]:
    """A random Llama with Llama 2's window, written by transformers, and text for a step or two."""
    pytest.importorskip("transformers")
    from support.llamas import torch_llama

    (folder / "weights").mkdir()
    torch_llama(folder / "weights", max_position_embeddings=4096)
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text(
        (Path(json.__file__).parent / "decoder.py").read_text() * 8
    )
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    return {
        "LLAMA2": str(folder / "weights"),
        "LONG_TEXT": str(folder / "text"),
        "STEPS": "2",
        "ROWS": "1",
    }


@pytest.mark.parametrize(
    ("name", "is_whole"),
    [
        *(
            pytest.param(
                name,
                False,
                marks=pytest.mark.slow if name == FOR_SLOW else pytest.mark.check,
                id=name,
            )
            for name in SCRIPTS
        ),
        *(pytest.param(name, True, marks=pytest.mark.slow, id=f"{name}-whole") for name in SMALLER),
    ],
)
def test_it_runs(name: str, is_whole: bool, tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    script = FOLDER / f"{name}.py"
    if not is_whole:
        script = tmp_path / "notebooks" / script.name
        script.write_text(smaller(name))
    settings = stand_in(tmp_path) if name == FOR_SLOW else {}
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "error::DeprecationWarning:ctxext",
        "XLA_FLAGS": "",
        **settings,
    }
    done = subprocess.run(
        [sys.executable, notebook_cells.__file__, str(script), str(tmp_path)],
        cwd=tmp_path / "notebooks",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    patterns, figures = SHOWN[name]
    for pattern in patterns:
        assert re.search(pattern, done.stdout), f"{pattern} is not in\n{done.stdout}"
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == figures
    for path in drawn:
        lines = [
            element.get("d", "")
            for element in ET.fromstring(path.read_text()).iter()
            if "L" in element.get("d", "")
        ]
        assert lines and not any("nan" in line or "inf" in line for line in lines), path.name


def test_drawings_are_the_charts_of_the_page(tmp_path: Path) -> None:
    """Under the same titles, and each one a self-contained file."""
    path = planted_run(tmp_path / "run")
    page = parse(write_report([path]).read_text())
    titles = [
        figure.one("figcaption").one("b").text.rstrip(".") for figure in page.all("figure", "drawn")
    ]
    drawn = drawings([path])
    assert list(drawn) == titles and len(titles) > 5
    for drawing in drawn.values():
        assert ET.fromstring(drawing._repr_svg_()).tag == "{http://www.w3.org/2000/svg}svg"
