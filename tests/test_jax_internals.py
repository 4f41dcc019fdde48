"""The private names of jax exist and do what we need; a jax without them is named in the error."""

import re
import sys
from pathlib import Path

import jax
import pytest

from ctxext import jax_internals
from ctxext.parallel import distributed

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "name",
    [jax_internals.CLIENT, jax_internals.ON_TPU, jax_internals.ATTENTION_WITH_LSE],
    ids=".".join,
)
def test_this_jax_has_the_private_names_that_we_use(name) -> None:
    try:
        jax_internals._private(name, "")
    except ValueError:
        pytest.fail(
            f"jax {jax.__version__} dropped {'.'.join(name)}: put its replacement into "
            "ctxext/jax_internals.py, the only file that knows it; until then cap jax in "
            "pyproject.toml"
        )


def test_the_private_functions_of_jax_do_what_we_need() -> None:
    assert jax_internals.client() is None
    assert jax_internals.on_tpu() is False
    assert callable(jax_internals.attention_with_lse().dot_product_attention)
    try:
        kind = sys.modules["jax._src.distributed"]._jax.DistributedRuntimeClient
    except AttributeError:
        pytest.skip("the class of the client has moved; test_processes.py uses the client itself")
    for method in ("key_value_set", "blocking_key_value_get"):
        assert hasattr(kind, method), (
            f"jax {jax.__version__}: the client of jax_internals.py has no {method}"
        )


def test_no_other_file_uses_private_names() -> None:
    private = re.compile(r"jax\._src|import jaxlib|from jaxlib")
    files = (ROOT / "ctxext").rglob("*.py")
    users = [file.name for file in files if private.search(file.read_text())]
    assert users == ["jax_internals.py"]


@pytest.mark.parametrize(
    ("where", "attribute", "ask", "advice"),
    [
        (
            "jax._src.distributed",
            "global_state",
            jax_internals.client,
            "run as a single process, .* with --num-processes 1",
        ),
        (
            "jax._src.cloud_tpu_init",
            "running_in_cloud_tpu_vm",
            jax_internals.on_tpu,
            "--num-processes 1 that there is no other process",
        ),
    ],
)
def test_a_private_name_that_jax_lacks_is_named(where, attribute, ask, advice, monkeypatch) -> None:
    monkeypatch.delattr(sys.modules[where], attribute)
    with pytest.raises(
        ValueError, match=rf"jax {jax.__version__} no longer has {where}\.{attribute}.*{advice}"
    ):
        ask()


def test_a_machine_with_libtpu_and_without_chips_is_a_single_process(monkeypatch) -> None:
    for name in (
        "SLURM_STEP_NUM_TASKS",
        "OMPI_COMM_WORLD_SIZE",
        "KUBERNETES_SERVICE_HOST",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "find_spec", lambda name: name == "libtpu")
    # libtpu, as `plan --compile` needs it, but no chips.
    distributed.initialize()
    monkeypatch.setattr(jax_internals, "ON_TPU", ("jax._src.cloud_tpu_init", "gone"))
    with pytest.raises(ValueError, match="--num-processes 1"):
        distributed.initialize()
    distributed.initialize(num_processes=1)
