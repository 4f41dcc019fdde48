"""The names of jax that are not public are there, do what is asked of them, and are missed in words."""

import re
import sys
from pathlib import Path

import jax
import pytest

from ctxext.parallel import distributed, jax_internals

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", [jax_internals.CLIENT, jax_internals.ON_TPU], ids=".".join)
def test_this_jax_has_the_names(name) -> None:
    try:
        jax_internals._private(name, "")
    except ValueError:
        names = f"jax {jax.__version__} dropped {'.'.join(name)}"
        pytest.fail(
            f"{names}: put what took its place into ctxext/jax_internals.py, the only file that knows it; until "
            "then cap jax in pyproject.toml"
        )


def test_they_answer_as_they_are_used() -> None:
    assert jax_internals.client() is None and jax_internals.on_tpu() is False
    try:
        kind = sys.modules["jax._src.distributed"]._jax.DistributedRuntimeClient
    except AttributeError:
        pytest.skip(
            "where the class of the client lies has changed; test_processes.py uses the client itself"
        )
    for method in ("key_value_set", "blocking_key_value_get"):
        assert hasattr(kind, method), (
            f"jax {jax.__version__}: the client of ctxext/jax_internals.py has no {method}"
        )


def test_nothing_else_is_private() -> None:
    private = re.compile(r"jax\._src|import jaxlib|from jaxlib")
    assert [p.name for p in (ROOT / "ctxext").rglob("*.py") if private.search(p.read_text())] == [
        "jax_internals.py"
    ]


@pytest.mark.parametrize(
    ("where", "attribute", "ask", "advice"),
    [
        (
            "jax._src.distributed",
            "global_state",
            jax_internals.client,
            "run as one process, .* with --num-processes 1",
        ),
        (
            "jax._src.cloud_tpu_init",
            "running_in_cloud_tpu_vm",
            jax_internals.on_tpu,
            "whether there are other processes",
        ),
    ],
)
def test_a_jax_that_dropped_one_is_named(where, attribute, ask, advice, monkeypatch) -> None:
    monkeypatch.delattr(sys.modules[where], attribute)
    with pytest.raises(
        ValueError, match=rf"jax {jax.__version__} no longer has {where}\.{attribute}.*{advice}"
    ):
        ask()


def test_a_machine_with_libtpu_asks_and_may_be_told(monkeypatch) -> None:
    for name in (
        "SLURM_STEP_NUM_TASKS",
        "OMPI_COMM_WORLD_SIZE",
        "KUBERNETES_SERVICE_HOST",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "find_spec", lambda name: name == "libtpu")
    distributed.initialize()  # libtpu, as `plan --compile` needs it, but no chips
    monkeypatch.setattr(internals, "ON_TPU", ("jax._src.cloud_tpu_init", "gone"))
    with pytest.raises(ValueError, match="--num-processes 1"):
        distributed.initialize()
    distributed.initialize(num_processes=1)
