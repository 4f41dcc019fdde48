"""Set up eight simulated CPU devices, strict promotion and no network before anything imports jax.

CTXEXT_TEST_PLATFORM=cuda,cpu (or tpu,cpu) runs on that device instead: `make gpu`.
"""

import gc
import os
import re
import sys
import tempfile
from collections import Counter
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
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one process of this run has compiled, the others read. The workers inherit the variables.
    PROGRAMS = tempfile.TemporaryDirectory(prefix="ctxext-test-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# The Python 3.12 lane has the newest jax and no torch: only there, tests of torch are skipped.
READERS = ("torch", "transformers", "peft")
NO_READERS = sys.version_info >= (3, 12) and find_spec("torch") is None
TOP_LEVEL = re.compile(rf"^(?:import|from) (?:{'|'.join(READERS)})\b", re.MULTILINE)
TESTS = Path(__file__).parent
# Much of the time of `make test` and `make check` is compiling programs that run once, so there it
# is done with little effort. `make slow` compiles as users do, and these files of `make check` too.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FULLY_COMPILED_IN_CHECK = (
    "bench/",
    "end_to_end/test_bundled.py",
    "interop/test_smollm2.py",
    "parallel/test_processes.py",
    "repository/test_recipe_twins.py",
    "training/test_loop.py",
)
IS_QUICK = pytest.StashKey[bool]()
# Files that take a minute or more in a tier, and files of few tests that take long. They start
# first, so that no core waits at the end for the other one.
LONGEST = (
    "repository/test_packaging.py",
    "parallel/test_processes.py",
    "repository/test_notebooks.py",
    "parallel/test_mesh.py",
    "repository/test_recipe_twins.py",
    "interop/test_smollm2.py",
    "end_to_end/test_families.py",
    "bench/test_bench.py",
    "model/test_generation.py",
    "cli/test_cli.py",
    "sweep/test_sweep.py",
    "attention/test_attention.py",
    "prove/test_formats.py",
    "training/test_loop.py",
    "interop/test_meta_sizes.py",
    "model/test_lora.py",
    "model/test_trainable.py",
    "training/test_monitor.py",
    "tracking/test_wandb_command.py",
    "end_to_end/test_bundled.py",
    "end_to_end/test_whole_way.py",
    "end_to_end/test_extended_base.py",
)
collect_ignore = [
    str(path.relative_to(TESTS))
    for path in TESTS.rglob("test_*.py")
    if NO_READERS and TOP_LEVEL.search(path.read_text())
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for the newest jax: a call that it lacks or warns of shows with any parameters."""
    parser.addoption(
        "--first-and-last",
        action="store_true",
        help="run a test of many parameters with the first and the last of them only",
    )


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with the most tests; in a file the order stays."""
    if items and items[0].config.option.first_and_last:
        _keep_first_and_last(items)
    counts = Counter(item.path for item in items)
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), -counts[item.path]))


def pytest_collection_finish() -> None:
    """What is imported by now stays, so that looking for garbage may pass it over."""
    gc.collect()
    gc.freeze()


def _keep_first_and_last(items: list[pytest.Item]) -> None:
    """Of each test, in place, what runs with its first and with its last parameters."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    items[:] = [item for same in tests.values() for item in dict.fromkeys((same[0], same[-1]))]


@pytest.fixture(scope="module", autouse=True)
def compilation_in_check(request: pytest.FixtureRequest) -> None:
    """Compile as users do in the files of `make check` for which that is said."""
    config = request.config
    file = request.path.relative_to(TESTS).as_posix()
    is_quick = config.option.markexpr == "check" and not file.startswith(FULLY_COMPILED_IN_CHECK)
    if config.stash.get(IS_QUICK, False) == is_quick:
        return
    import jax

    # Or a program of the one kind would be compared with one of the other, to the last bit.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", is_quick)
    config.stash[IS_QUICK] = is_quick


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
