"""Compiled programs are kept between processes and counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctxext.cli.compile_cache import keep_programs
from support.processes import ROOT

SCRIPT = """
import json, os
from ctxext.cli.compile_cache import count_compilations, keep_programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
keep_programs()
import jax, jax.numpy as jnp
x = jnp.arange(8.0)
with count_compilations() as count:
    jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(x))
    jax.block_until_ready(jax.jit(lambda x: jnp.cos(x) @ x)(x))
print(json.dumps([count.programs, count.cached, count.seconds > 0, count.text]))
"""


def run(home: Path) -> list:
    """Run the script in a new process; its counts of programs, and the text that reports them."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


def test_a_second_process_compiles_nothing(tmp_path: Path):
    """Two programs: the first process compiles them, the second reads them from the cache."""
    first = run(tmp_path)
    second = run(tmp_path)
    assert first[:3] == [2, 0, True]
    assert second[:3] == [2, 2, True]
    assert second[3].endswith("2 of them from the cache")
    assert len(list((tmp_path / "ctxext").iterdir())) == 1


def test_environment_variables_of_the_user_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "9")
    keep_programs()
    assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parent == tmp_path / "ctxext"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "9"
