"""What things cost: each part measures one, warm, and says so as data; beside transformers on torch if asked."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctxext.bench.cases import Work, standard

AGAINST = {"hf": "theirs"}
MATCHES = ("step", "prefill", "decode", "attention", "loss", "memory")
PARTS = ("eval", "io", *MATCHES)


def measure(
    source: str,
    parts: Sequence[str],
    *,
    against: str | None = None,
    rounds: int = 5,
    platform: str | None = None,
) -> dict[str, Any]:
    """The figures of the named parts, of PARTS; `source` is the model of "eval", other parts have random weights.

    against: "hf" does the same work beside it, in turns. platform: whose sizes, by default this machine's. Raises
    ValueError for an unknown name, and if the other side is not installed.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"there is no bench {part!r}; known: {', '.join(PARTS)}")
    if against is not None and against not in AGAINST:
        raise ValueError(
            f"there is nothing to bench against called {against!r}; known: {', '.join(AGAINST)}"
        )
    if against and not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        raise ValueError(
            "--against hf runs transformers on torch; install both: pip install transformers torch"
        )
    sides = ["ours", *([AGAINST[against]] if against else [])]
    alone: dict[str, Callable[[], dict[str, Any]]] = {
        "eval": lambda: _evaluation(source),
        "io": _files,
    }
    works = standard(platform or _platform()) if set(parts) & set(MATCHES) else {}
    with tempfile.TemporaryDirectory() as directory:
        return {
            part: alone[part]()
            if part in alone
            else _matches(works[part], Path(directory), sides, rounds)
            for part in parts
        }


def _platform() -> str:
    """ "cpu", "gpu" or "tpu"; asked in a process that gives the device back."""
    code = "import jax; print(jax.default_backend())"
    said = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return said.split()[-1]


def _matches(
    works: Sequence[Work], directory: Path, sides: Sequence[str], rounds: int
) -> dict[str, Any]:
    from ctxext.bench.comparison import match
    from ctxext.bench.weights import random_weights

    return {
        "matches": [
            match(work, random_weights(work, directory), sides, rounds=rounds) for work in works
        ]
    }


def _evaluation(source: str) -> dict[str, Any]:
    from ctxext import loading
    from ctxext.bench.evaluation import overhead

    return overhead(loading.load(source))


def _files() -> dict[str, Any]:
    from ctxext.bench.files import throughput

    return throughput()
