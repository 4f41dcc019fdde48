"""No Python that we start imports from the current directory."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import ctxext
from ctxext.child_python import python_command, safe_path
from support.hostile import imported

PACKAGE = Path(ctxext.__file__).parent
STARTERS = {
    "subprocess": {"run", "Popen", "call", "check_call", "check_output", "getoutput"},
    "os": {"system", "popen", "execv", "execve", "execvp", "posix_spawn", "spawnv", "fork"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
}
"""Functions that start a process, by their module."""
GIT = ("rundir.py", "evals/ruler_scripts.py")
"""Files that start another program, git."""
POOLS = {"multiprocessing"}


def _starts(tree: ast.Module) -> list[ast.Call]:
    """Calls of `module.function(...)` that start a process."""
    calls = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module = node.func.value
            if isinstance(module, ast.Name) and node.func.attr in STARTERS.get(module.id, ()):
                calls.append(node)
    return calls


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


def _check(path: Path) -> None:
    source = path.read_text()
    assert "sys.executable" not in source
    if not re.search(r"\b(subprocess|multiprocessing|asyncio|concurrent|os)\b", source):
        return
    tree = ast.parse(source)
    # Only `subprocess.run` and the like, so that the calls below are all there are.
    for module in STARTERS:
        assert f"from {module} import" not in source
    if _imports(tree) & POOLS or "ProcessPoolExecutor" in source:
        assert "safe_path()" in source
    if path.relative_to(PACKAGE).as_posix() in GIT:
        assert source.count('command = ["git", ') == len(_starts(tree)) == 1
        return
    for call in _starts(tree):
        # Either the helper's own call, or what it gave.
        command = ast.unparse(call.args[0])
        assert command.startswith("python_command(") or (
            command == "command" and "command = python_command(" in source
        )
        assert not any(keyword.arg == "shell" for keyword in call.keywords)


def test_every_process_is_started_by_the_helper():
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "child_python.py"]
    assert len(files) > 300
    for path in files:
        try:
            _check(path)
        except AssertionError as error:
            raise AssertionError(f"{path} starts a process by itself") from error


def test_a_module_in_the_current_directory_is_not_imported(hostile_directory: Path):
    code = "import argparse, selectors; print(selectors.__file__)"
    output = subprocess.check_output(python_command("-c", code), text=True)
    assert Path(output.strip()).parent != hostile_directory
    assert imported(hostile_directory) == []
    subprocess.check_call([sys.executable, "-c", "import selectors"])
    assert imported(hostile_directory) == ["selectors"]  # Python by itself does


def test_children_of_libraries_have_the_safe_path_too(hostile_directory: Path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # twice the current directory
    with safe_path():
        code = "import selectors, ctxext; print(ctxext.__file__)"
        output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert Path(output.strip()) == PACKAGE / "__init__.py"
    assert imported(hostile_directory) == []
    assert os.environ["PYTHONPATH"] == os.pathsep
    assert "PYTHONSAFEPATH" not in os.environ


def test_python_itself_imports_from_the_current_directory_before_the_module(tmp_path: Path):
    """Only -P, or the script `ctxext`, keeps it from that."""
    for name in ("contextlib", "functools", "re", "typing"):
        (tmp_path / f"{name}.py").write_text("import os; os.mkdir('imported'); raise SystemExit")
    for options, is_imported in ((["-P"], False), ([], True)):
        command = [sys.executable, *options, "-m", "ctxext", "report", "--help"]
        subprocess.check_call(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        assert (tmp_path / "imported").exists() == is_imported


def test_the_module_leaves_the_current_directory(hostile_directory: Path):
    (hostile_directory / "ctxext.py").unlink()  # Python itself would run this one
    subprocess.check_call(
        [sys.executable, "-m", "ctxext", "--help"], stdout=subprocess.DEVNULL, timeout=60
    )
    assert imported(hostile_directory) == []
