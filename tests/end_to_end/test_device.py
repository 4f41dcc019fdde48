"""On an accelerator (`make gpu`): the same numbers as on the CPU, planned memory, and speed.

CTXEXT_TEST_PLATFORM=cpu runs on a CPU what needs no accelerator, to check the tests themselves.
"""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext import bench
from ctxext.attention import Attention, Band, Causal, blocked, dense
from ctxext.attention.kernels import TABLE, choose
from ctxext.attention.request import Request
from ctxext.bench import comparison
from ctxext.bench.cases import LARGE, SMALL, BenchmarkCase
from ctxext.bench.ctxext_backend import OPTIM, PARTS
from ctxext.bench.weights import random_weights
from ctxext.experiment import load_experiment
from ctxext.methods import LMInfinite, SelfExtend
from ctxext.model.trainable import Full
from ctxext.parallel.mesh import Mesh
from ctxext.plan.accelerators import GIB
from ctxext.plan.job import Job
from ctxext.plan.memory import memory
from support import tiny
from support.every_method import EVERY

pytestmark = pytest.mark.gpu
RECIPE = Path(__file__).parents[2] / "experiments" / "llama2_7b_yarn_8k.py"
ON_CPU = os.environ.get("CTXEXT_TEST_PLATFORM", "cpu") == "cpu"


@pytest.fixture(autouse=True)
def full_precision():
    """Compute float32 products in float32; by default accelerators round their inputs."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def accelerator() -> str:
    if ON_CPU:
        pytest.skip("needs an accelerator")
    return jax.default_backend()


def heads(T: int, dtype: str) -> list[jax.Array]:
    """Random q, k, v and output weights, each [2, T, heads, 64]."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, T, n, 64)), dtype) for n in (8, 4, 4, 8)]


def values_and_gradients(kernel, q, k, v, weight):
    """The output of a kernel, and the gradients of its weighted sum by q, k and v."""

    def total(q, k, v):
        out = kernel(q, k, v)
        return (out * weight).astype(jnp.float32).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    return [out, *gradients]


def by_dense(masks, segments=None):
    """The dense reference as a function of q, k and v."""

    def kernel(q, k, v):
        index = jnp.arange(q.shape[1])[None]
        return dense(
            [q] * len(masks),
            [k] * len(masks),
            v,
            masks,
            query_index=index,
            key_index=index,
            query_segments=segments,
            key_segments=segments,
        )

    return kernel


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("attention", [Causal(), SelfExtend(4, 512), LMInfinite(300)], ids=repr)
def test_blocks_equal_dense(attention: Attention, packed: bool):
    """Values and gradients in float32, for 1,111 tokens."""
    q, k, v, weight = heads(1111, "float32")
    masks = [piece.mask for piece in attention.pieces(1024)]
    segments = None
    if packed:
        segments = jnp.asarray(np.arange(1111)[None] // [[300], [450]], jnp.int32)

    def by_blocks(q, k, v):
        return blocked([q] * len(masks), [k] * len(masks), v, masks, segment_ids=segments)

    ours = values_and_gradients(by_blocks, q, k, v, weight)
    expected = values_and_gradients(by_dense(masks, segments), q, k, v, weight)
    for actual, reference in zip(ours, expected, strict=True):
        np.testing.assert_allclose(actual, reference, atol=2e-5)


@pytest.mark.parametrize("mask", [Band(), Band(0, 300)], ids=repr)
@pytest.mark.parametrize("T", [1024, 4096])
def test_the_fused_kernel_equals_dense(accelerator: str, mask: Band, T: int):
    """The relative root mean square error of bfloat16, compared with float32."""
    numbers = heads(T, "bfloat16")
    request = Request((mask,), accelerator, seq_len=T, dtype=jnp.bfloat16, packed=False)
    chosen = choose("auto", request)
    assert chosen in ("cudnn", "splash")
    attend = TABLE[chosen].attend
    ours = values_and_gradients(lambda q, k, v: attend([q], [k], v, [mask]), *numbers)
    expected = values_and_gradients(by_dense([mask]), *(x.astype(jnp.float32) for x in numbers))
    for actual, exact in zip(ours, expected, strict=True):
        error = jnp.linalg.norm(actual.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 1e-2


@pytest.mark.parametrize("scaling", EVERY, ids=repr)
def test_every_method_gives_the_logits_of_the_cpu(scaling):
    tokens = tiny.tokens(2, 70)
    ours = tiny.lm(scaling=scaling).logits(tokens)
    with jax.default_device(jax.devices("cpu")[0]):
        expected = tiny.lm(scaling=scaling, kernel="dense").logits(tokens)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("remat", "dtype"), [("none", "float32"), ("full", "float32"), ("full", "bfloat16")]
)
def test_training_equals_that_on_the_cpu(
    remat: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Losses and gradient norms of three steps with 27 M parameters; the CPU uses float32."""
    case = BenchmarkCase("step", 512, 2, remat=remat, dtype=dtype, shape=SMALL)
    weights = random_weights(case, tmp_path)
    run_once = PARTS["step"](case, weights)
    values = [run_once()[1] for _ in range(3)]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    exact = dataclasses.replace(case, dtype="float32")
    with comparison.backend_process("ctxext", exact, weights) as process:
        assert process.device == "cpu"
        expected = [process.round()["value"] for _ in range(3)]
    np.testing.assert_allclose(values, expected, rtol=5e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("seq_len", [2048, 8192])
def test_the_peak_is_as_planned(accelerator: str, seq_len: int, tmp_path: Path):
    """The peak of a training step of 1.1 B parameters with full rematerialisation, within 20%."""
    case = BenchmarkCase("step", seq_len, remat="full", dtype="bfloat16", shape=LARGE)
    weights = random_weights(case, tmp_path)
    result = comparison.compare_backends(case, weights, ["ctxext"], rounds=1)
    measured = result["backends"]["ctxext"]["peak_gib"]
    recipe = load_experiment(RECIPE)
    train = dataclasses.replace(recipe.train, seq_len=seq_len, batch_size=1, accumulate=1)
    experiment = dataclasses.replace(
        recipe, mesh=Mesh(), model=LARGE, trainable=Full(), train=train, optim=OPTIM
    )
    planned = memory(Job.of(experiment, LARGE, 1), accelerator).peak / GIB
    print(f"{seq_len} tokens: planned {planned:.2f} GiB, measured {measured:.2f} GiB")
    assert measured == pytest.approx(planned, rel=0.2)


def test_the_benchmark_measures_what_the_device_did(accelerator: str):
    results = bench.measure("tiny-llama", ["step"], rounds=2)
    for backend in (result["backends"]["ctxext"] for result in results):
        assert backend["device"] == jax.devices()[0].device_kind
        assert 0 < backend["device_seconds"] < 1.5 * backend["seconds"]["high"]
        # Only accelerators with a known peak have an MFU.
        assert "mfu" not in backend or 0.05 < backend["mfu"] < 1
