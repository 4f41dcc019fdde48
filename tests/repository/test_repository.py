"""The repository as a whole: docstrings, light imports, pins within bounds, no machine paths."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ctxext

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ctxext"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (
    "jax",
    "flax",
    "numpy",
    "torch",
    "transformers",
    "wandb",
    "orbax",
    "optax",
    "tokenizers",
    "sentencepiece",
)


def python(code: str) -> str:
    """The output of a fresh interpreter that runs `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_has_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("command", [[], ["--help"]], ids=["bare", "--help"])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["ctxext", *{command}]
from ctxext.cli.main import main
try:
    main()
except SystemExit:
    pass
print("heavy:", sorted(set({HEAVY}) & set(sys.modules)))
"""
    out = python(code)
    assert out.splitlines()[-1] == "heavy: []"
    assert not command or ("demo" in out and "export" in out)


def test_the_python_api_imports_lazily() -> None:
    assert (
        python(f"import sys, ctxext; print(sorted(set({HEAVY}) & set(sys.modules)))").strip()
        == "[]"
    )
    for name in ctxext.__all__:
        assert getattr(ctxext, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = ctxext.no_such_name


def test_the_version_is_the_same_everywhere() -> None:
    assert ctxext.__version__ == PROJECT["version"]
    assert f"## {ctxext.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_there_is_no_yaml_to_learn() -> None:
    """Only what others write as YAML is read: RULER's own settings, and cards of the hub."""
    imports = re.compile(r"^\s*(import|from) (yaml|ruamel|omegaconf|hydra)\b", re.MULTILINE)
    readers = {path.name for path in MODULES if imports.search(path.read_text())}
    assert readers == {"ruler_generators.py", "front_matter.py"}
    for folder in (PACKAGE, ROOT / "experiments"):
        assert not [*folder.rglob("*.yaml"), *folder.rglob("*.yml")]


def test_the_citation_matches_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (
        cited["title"],
        cited["version"],
        cited["license"],
        cited["abstract"],
        cited["keywords"],
    ) == tuple(PROJECT[name] for name in ("name", "version", "license", "description", "keywords"))
    (entry,) = re.findall(r"^@software\{(.*)\}$", (ROOT / "README.md").read_text(), re.MULTILINE)
    (author,) = cited["authors"]
    for part in (cited["title"], f"{{{author['name']}}}", cited["version"], cited["license"]):
        assert f"= {{{part}}}" in entry


@pytest.mark.parametrize(
    "lane, python, wanted",
    [
        ("py311", "3.11", ("test", "lint", "benchmarks")),
        ("py312", "3.12", ("test", "lint", "benchmarks")),
        ("transformers4", "3.11", ("transformers4",)),
    ],
)
def test_pins_are_within_the_bounds(lane: str, python: str, wanted: tuple[str, ...]) -> None:
    lines = (ROOT / "constraints" / f"{lane}.txt").read_text().splitlines()
    pins = dict(
        line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#")
    )
    environment = {"python_version": python, "extra": ""}
    extras = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + [text for extra in wanted for text in extras[extra]]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = requirement.name.lower().replace("_", "-")
            assert pins.get(name) and requirement.specifier.contains(pins[name]), (
                f"{text}: pinned {pins.get(name)}"
            )


def test_property_tests_draw_the_same_examples_in_every_run() -> None:
    """`make slow` explores new ones; what it finds becomes an example of the test."""
    hypothesis = pytest.importorskip("hypothesis")
    assert hypothesis.settings.default.derandomize


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(work|root|home|Users|mnt|farm)/\w")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.splitlines():
        if (ROOT / name).suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".ipynb", "") and (
            ROOT / name
        ).is_file():
            for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
                assert not pattern.search(line), f"{name}:{number}: {line.strip()}"


def test_every_module_that_annotates_shapes_is_checked_in_tests():
    (option,) = (
        word.removeprefix("--jaxtyping-packages=")
        for word in PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]
        if word.startswith("--jaxtyping-packages=")
    )
    *packages, _checker = option.split(",")
    for path in MODULES:
        if "jaxtyping" in path.read_text():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            assert any(f"{name}.".startswith(f"{package}.") for package in packages), name


def test_a_shape_that_an_annotation_excludes_fails_in_tests():
    from jax import numpy as jnp
    from jaxtyping import TypeCheckError

    from ctxext.rope import rotate

    x = jnp.ones((1, 3, 2, 4))
    rotate(x, jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2)))
    with pytest.raises(TypeCheckError):
        rotate(x, jnp.ones((1, 1, 2)), jnp.zeros((1, 1, 2)))
