"""A directory of a stranger, whose modules have the names of others and tell when they are run."""

from pathlib import Path

NAMES = (
    "argparse",
    "ctxext",
    "jax",
    "jinja2",
    "multiprocessing",
    "numpy",
    "pickle",
    "resource",
    "selectors",
    "yaml",
)


def write_modules(directory: Path) -> Path:
    """Modules of all NAMES, which work as empty ones do."""
    directory.mkdir()
    for name in NAMES:
        (directory / f"{name}.py").write_text(
            f"from pathlib import Path; Path({str(directory)!r}, '{name}.imported').touch()"
        )
    return directory


def imported(directory: Path) -> list[str]:
    """The names of the modules that some process has imported."""
    return sorted(path.stem for path in directory.glob("*.imported"))
