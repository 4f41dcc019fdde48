"""Python processes that are started from here import nothing from the current directory.

Python looks for modules in the current directory first if it runs code (-c) or a module (-m). A
command that is run in a stranger's directory would so execute a `numpy.py` that lies there.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"
"""An environment variable of Python, equal to its option -P."""


def python_command(*arguments: str) -> list[str]:
    """The command that runs this Python with `arguments`, such as "-m", MODULE."""
    return [sys.executable, "-P", *arguments]


@contextlib.contextmanager
def safe_path() -> Iterator[None]:
    """Every Python that is started in the block, by whatever library, has the safe import path.

    A package that is not installed but used from its checkout is found as before.
    """
    # An empty entry is the current directory.
    directories = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    root = Path(__file__).parents[1]
    if root.name not in ("site-packages", "dist-packages"):
        directories.append(str(root))
    changes = {SAFE_PATH: "1", "PYTHONPATH": os.pathsep.join(directories)}
    before = {name: os.environ.get(name) for name in changes}
    os.environ |= changes
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
