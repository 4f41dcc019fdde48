"""The README and the pages in docs/ are true: commands, code, links, and the pages generated from
the code."""

import importlib.util
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
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(text: str) -> list[str]:
    """The Python code blocks of a page."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_method_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = [block for block in python_blocks(README) if block.startswith("# mine.py")]
    (tmp_path / "mine.py").write_text(source)
    assert main(["rope", f"{tmp_path / 'mine.py'}:HalfPI", "--factor", "4", "--json"]) == 0
    inv_freq = json.loads(capsys.readouterr().out)["inv_freq"]
    plain = RopeBase(128, 10000.0, 4096).inv_freq
    assert inv_freq[:32] == plain[:32].tolist()
    assert inv_freq[32:] == (plain[32:] / 4).tolist()


def test_the_commands_page_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    documented = set(re.findall(r"^\| `ctxext ([a-z]+)", page, re.MULTILINE))
    with pytest.raises(SystemExit):
        main(["--help"])
    help_text = capsys.readouterr().out
    assert documented == set(re.findall(r"^ {2}([a-z]+)\b", help_text, re.MULTILINE))


@pytest.mark.check
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    code = "\n".join(block for block in python_blocks(README) if block.startswith("import ctxext"))
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:ctxext"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_line_of_the_security_page_names_a_test_that_there_is() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [line for line in rows if not line.endswith("| test |")]
    assert len(rows) > 10
    assert all("`tests/" in row for row in rows)
    paragraphs = [part for part in page.split("\n\n") if not part.startswith(("#", "|"))]
    assert all("`tests/" in paragraph for paragraph in paragraphs[1:])
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page):
        assert f"def {name}(" in (ROOT / file).read_text(), name


def test_the_readme_is_short_and_states_its_limits_first() -> None:
    lines = README.splitlines()
    assert len(lines) <= 200
    first_screen = "\n".join(lines[:25])
    assert "No accelerator" in first_screen
    assert "No 7B" in first_screen


def test_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, page in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text() == page(), f"docs/{name} is old: run `make docs`"
