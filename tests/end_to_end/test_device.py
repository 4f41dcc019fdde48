"""On an accelerator (`make gpu`): the same numbers as on the CPU, memory as planned, and speed.

CTXEXT_TEST_PLATFORM=cpu runs what needs no accelerator on a CPU, to try the tests themselves.
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
from ctxext.bench.cases import LARGE, SMALL, Work
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
def highest():
    """Float32 products in float32; accelerators round their inputs if not told."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def accelerator() -> str:
    if ON_CPU:
        pytest.skip("needs an accelerator")
    return jax.default_backend()


def heads(T: int, dtype: str) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, T, n, 64)), dtype) for n in (8, 4, 4, 8)]


def values_and_gradients(kernel, q, k, v, weight):
    def total(q, k, v):
        out = kernel(q, k, v)
        return (out * weight).astype(jnp.float32).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    return [out, *gradients]


def by_dense(masks, segments=None):
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
    """Values and gradients in float32, of 1,111 tokens."""
    q, k, v, weight = heads(1111, "float32")
    masks = [piece.mask for piece in attention.pieces()]
    segments = jnp.asarray(np.arange(1111)[None] // [[300], [450]], jnp.int32) if packed else None
    ours = values_and_gradients(
        lambda q, k, v: blocked([q] * len(masks), [k] * len(masks), v, masks, segment_ids=segments),
        q,
        k,
        v,
        weight,
    )
    for found, wanted in zip(
        ours, values_and_gradients(by_dense(masks, segments), q, k, v, weight), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("mask", [Band(), Band(0, 300)], ids=repr)
@pytest.mark.parametrize("T", [1024, 4096])
def test_the_vendor_s_kernel_equals_dense(accelerator: str, mask: Band, T: int):
    """In bfloat16, against float32 of the same numbers: the root mean square of the error, relative."""
    numbers = heads(T, "bfloat16")
    request = Request((mask,), accelerator, seq_len=T, dtype=jnp.bfloat16, packed=False)
    chosen = choose("auto", request)
    assert chosen in ("cudnn", "splash")
    attend = TABLE[chosen].attend
    ours = values_and_gradients(lambda q, k, v: attend([q], [k], v, [mask]), *numbers)
    wanted = values_and_gradients(by_dense([mask]), *(x.astype(jnp.float32) for x in numbers))
    for found, exact in zip(ours, wanted, strict=True):
        error = jnp.linalg.norm(found.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 1e-2


@pytest.mark.parametrize("scaling", EVERY, ids=repr)
def test_every_method_gives_the_logits_of_the_cpu(scaling):
    tokens = tiny.tokens(2, 70)
    ours = tiny.lm(scaling=scaling).logits(tokens)
    with jax.default_device(jax.devices("cpu")[0]):
        wanted = tiny.lm(scaling=scaling, kernel="dense").logits(tokens)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("remat", "dtype"), [("none", "float32"), ("full", "float32"), ("full", "bfloat16")]
)
def test_training_goes_as_on_the_cpu(
    remat: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Three steps of 27 M parameters: losses and gradient norms, the CPU's in float32."""
    work = Work("step", 512, 2, remat=remat, dtype=dtype, shape=SMALL)
    weights = random_weights(work, tmp_path)
    here = PARTS["step"](work, weights)
    found = [here()[1] for _ in range(3)]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with comparison.opened("ours", dataclasses.replace(work, dtype="float32"), weights) as there:
        assert there.device == "cpu"
        wanted = [there.round()["value"] for _ in range(3)]
    np.testing.assert_allclose(found, wanted, rtol=5e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("seq_len", [2048, 8192])
def test_the_peak_is_as_planned(accelerator: str, seq_len: int, tmp_path: Path):
    """Of a training step of 1.1 B parameters with full rematerialisation, within a fifth."""
    work = Work("step", seq_len, remat="full", dtype="bfloat16", shape=LARGE)
    measured = comparison.match(work, random_weights(work, tmp_path), ["ours"], rounds=1)["sides"][
        "ours"
    ]["peak_gib"]
    recipe = load_experiment(RECIPE)
    train = dataclasses.replace(recipe.train, seq_len=seq_len, batch_size=1, accumulate=1)
    experiment = dataclasses.replace(
        recipe, mesh=Mesh(), model=LARGE, trainable=Full(), train=train, optim=OPTIM
    )
    planned = memory(Job.of(experiment, LARGE, 1), accelerator).peak / GIB
    print(f"{seq_len} tokens: planned {planned:.2f} GiB, measured {measured:.2f} GiB")
    assert measured == pytest.approx(planned, rel=0.2)


def test_the_bench_says_what_the_device_did(accelerator: str):
    found = bench.measure("tiny-llama", ["step"], rounds=2)["step"]["matches"]
    for side in (one["sides"]["ours"] for one in found):
        assert side["device"] == jax.devices()[0].device_kind
        assert 0 < side["device_seconds"] < 1.5 * side["seconds"]["high"]
        assert "mfu" not in side or 0.05 < side["mfu"] < 1  # of an accelerator whose peak is known
