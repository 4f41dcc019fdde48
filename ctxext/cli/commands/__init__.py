"""The commands, one module each.

A module named after its command holds everything about it: its docstring is the help, `add_options`
declares its options and `run` does it. `GROUP` is where `ctxext --help` lists it. Its `KEPT`, if it
has one, says what an interrupted command keeps, so that the same command goes on. What it needs
beyond argparse is imported in `run`, so that `--help` is fast.
"""

import argparse
import importlib
import pkgutil
from typing import Protocol, cast

GROUPS = ("Train", "Measure", "Checkpoints and texts", "Methods", "Shell")
"""The groups of commands, in their order."""


class Command(Protocol):
    """The interface of a module in this package."""

    __doc__: str | None
    GROUP: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of the command."""

    def run(self, args: argparse.Namespace, rest: list[str]) -> int | None:
        """Run it and return its exit status, None for 0. `rest` is what argparse did not know."""


def all_commands() -> dict[str, Command]:
    """Every command by its name; a trailing underscore, as in `import_`, is not part of it."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules: dict[str, Command] = {}
    for name in names:
        module = importlib.import_module(f"{__name__}.{name}")
        modules[name.rstrip("_")] = cast(Command, module)
    return modules
