"""The fused kernels of libraries: splash interpreted on the CPU against `dense`, and compilers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctxext.attention import Band, Causal, dense
from ctxext.attention.pieces import Mask
from ctxext.attention.splash import splash
from ctxext.parallel.attention import make_sharded_attention, ring_order
from ctxext.parallel.mesh import Mesh
from ctxext.plan.compile_request import ENVIRONMENT, is_compiler_installed
from ctxext.plan.compile_worker import topology_devices
from ctxext.rope import RopeBase, Unscaled


@pytest.mark.parametrize(
    ("mask", "T", "packed", "mesh"),
    [
        (Band(), 256, True, None),
        pytest.param(Band(0, 100), 384, False, None, marks=pytest.mark.check),
        pytest.param(Band(), 128, True, Mesh(fsdp=2, tensor=2), marks=pytest.mark.check),
    ],
)
def test_splash_equals_dense_in_values_and_gradients(
    mask: Mask, T: int, packed: bool, mesh: Mesh | None
):
    B = 2
    N = 4
    K = 2
    H = 16
    rng = np.random.default_rng(0)

    def draw(heads: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(B, T, heads, H)), jnp.float32)

    q = draw(N)
    k = draw(K)
    v = draw(K)
    weight = draw(N)
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (B, T))), jnp.int32) if packed else None
    index = jnp.arange(T)[None]
    sharding = mesh.activations((B, T, K, H)) if mesh else None

    def by_splash(q, k, v):
        return splash([q], [k], v, [mask], segment_ids=ids, sharding=sharding, interpret=True)

    def by_dense(q, k, v):
        return dense(
            [q],
            [k],
            v,
            [mask],
            query_index=index,
            key_index=index,
            query_segments=ids,
            key_segments=ids,
        )

    def both(kernel):
        def total(q, k, v):
            out = kernel(q, k, v)
            return (out * weight).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return out, gradients

    for actual, expected in zip(
        jax.tree.leaves(both(by_splash)), jax.tree.leaves(both(by_dense)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_tpu_compiler_accepts_splash_and_the_ring_without_a_device(monkeypatch):
    """Kernel "auto": splash for whole sequences, the transfers of the ring for cut ones."""
    if not is_compiler_installed("tpu"):
        pytest.skip("needs the extra [plan]")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    tpus = topology_devices("v5e:2x2")
    assert "tpu_custom_call" in compiled_for("tpu", Mesh(fsdp=4).on(tpus), 512).as_text()
    assert "collective-permute" in compiled_for("tpu", Mesh(seq=4).on(tpus), 512).as_text()


def compiled_for(
    platform: str, mesh: Mesh, T: int, *, window: int | None = None, packed: bool = False
):
    """The gradients of attention of T tokens by kernel "auto", in bfloat16, on a mesh."""
    rotation = Unscaled().rope(RopeBase(128, 1e4, 64), 64).rotation()
    shape = (4, T, 2, 128)

    def loss(q, k, v, segments):
        positions = ring_order(jnp.broadcast_to(jnp.arange(T)[None], (4, T)), mesh)
        attend = make_sharded_attention(
            mesh, Windowed(window), "auto", rotation, positions, segments if packed else None
        )
        return attend(q, k, v, None, 0)[0].astype(jnp.float32).sum()

    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=mesh.activations(shape))
    segments = jax.ShapeDtypeStruct((4, T), jnp.int32, sharding=mesh.activations((4, T)))
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x, segments)
    return traced.lower(lowering_platforms=(platform,)).compile()


@dataclasses.dataclass(frozen=True)
class Windowed(Causal):
    """Causal attention to the last tokens."""

    window: int | None

    def pieces(self, seq_len):
        mask = Band(0, self.window)
        return tuple(dataclasses.replace(piece, mask=mask) for piece in super().pieces(seq_len))


@pytest.fixture
def gpus():
    """Eight H100 GPUs to compile for."""
    if not is_compiler_installed("gpu"):
        pytest.skip("needs the extra [plan-gpu]")
    return topology_devices("h100:8")


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 1000])
def test_the_gpu_compiler_accepts_cudnn_without_a_device(window, gpus):
    text = compiled_for("cuda", Mesh(fsdp=4, tensor=2).on(gpus), 4096, window=window).as_text()
    for call in ('"__cudnn$fmhaSoftmax"', '"__cudnn$fmhaSoftmaxBackward"'):
        line = next(line for line in text.splitlines() if call in line)
        assert '"mask_type": "CAUSAL"' in line
        assert f'"sliding_window_length": {window or 0},' in line
    assert "while(" not in text, "a loop over blocks"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [Mesh(fsdp=4, tensor=2), Mesh(fsdp=2, seq=4)], ids=str)
def test_packed_rows_on_gpus_take_memory_linear_in_their_length(mesh, gpus):
    def temporary(T: int) -> int:
        program = compiled_for("cuda", mesh.on(gpus), T, packed=True)
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(65536) < 4.1 * temporary(16384)
