"""Set up eight simulated CPU devices, strict promotion and no network before anything imports jax.

CTXEXT_TEST_PLATFORM=cuda,cpu (or tpu,cpu) runs on that device instead: `make gpu`.
"""

import os
import re
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)
os.environ |= {
    "JAX_PLATFORMS": os.environ.get("CTXEXT_TEST_PLATFORM", "cpu"),
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

# The Python 3.12 lane has the newest jax and no torch: only there, tests of torch are skipped.
READERS = ("torch", "transformers", "peft")
NO_READERS = sys.version_info >= (3, 12) and find_spec("torch") is None
TOP_LEVEL = re.compile(rf"^(?:import|from) (?:{'|'.join(READERS)})\b", re.MULTILINE)
TESTS = Path(__file__).parent
# Much of the time of `make test` is compiling programs that run once, so there it is done with
# little effort. `make check` and `make slow` compile as users do.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
collect_ignore = [
    str(path.relative_to(TESTS))
    for path in TESTS.rglob("test_*.py")
    if NO_READERS and TOP_LEVEL.search(path.read_text())
]


def pytest_configure(config: pytest.Config) -> None:
    """Choose how programs are compiled and how property tests draw, by the tier that runs.

    Property tests draw the same examples in every run; only `make slow` explores new ones.
    """
    if config.option.markexpr == config.getini("addopts")[-1]:
        os.environ["XLA_FLAGS"] += f" {QUICK_COMPILATION}"
    if config.option.markexpr == "slow" or not find_spec("hypothesis"):
        return
    from hypothesis import settings

    settings.register_profile("same-examples", derandomize=True)
    settings.load_profile("same-examples")


def _skip_without_readers() -> Generator[None, object, object]:
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if NO_READERS and error.name in READERS:
            pytest.skip(f"needs {error.name}")
        raise


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_skip_without_readers)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_skip_without_readers)


@pytest.fixture
def hostile_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory of the test, with modules that no process may import."""
    from support.hostile import write_modules

    directory = write_modules(tmp_path / "hostile")
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def readers() -> None:
    """Skip the test where the PyTorch readers are missing:
    `@pytest.mark.usefixtures("readers")`."""
    for name in READERS:
        __import__(name)
