"""Rotary tables against float64, their precision inside a bfloat16 model, and the one rotation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctxext.attention import Causal
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.yarn import Yarn
from ctxext.model.lm import _logits
from ctxext.model.setup import ModelSetup
from ctxext.parallel.mesh import Mesh
from ctxext.rope import (
    Rope,
    RopeBase,
    RopeScaling,
    Unscaled,
    inverse_frequencies,
    rope_at,
    rotate,
    rotation_at,
)
from support import tiny

LLAMA2 = RopeBase(128, 1e4, 4096)
SCALINGS = [Unscaled(), Linear(8.0), NTK(8.0), DynamicNTK(2.0), Yarn(8.0), Llama3(8.0)]
POSITIONS = np.unique(np.r_[0:300, np.geomspace(300, 131071, 2000).astype(int), 131000:131072])


def exact(rope: Rope, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tables of cosines and sines, computed in extended precision."""
    angles = positions[..., None] * np.asarray(rope.inv_freq, np.longdouble)
    tables = np.cos(angles), np.sin(angles)
    return tuple(np.asarray(rope.attention_factor * table, np.float64) for table in tables)


@jax.jit
def tables(rotation, positions):
    return rotation.tables(positions)


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
def test_tables_are_exact_at_any_position(scaling: RopeScaling):
    rope = scaling.rope(LLAMA2, 131072)
    for compute in (tables, lambda rotation, p: rotation.tables(p)):
        computed = compute(rope.rotation(), jnp.asarray(POSITIONS, jnp.int32))
        for actual, expected in zip(computed, exact(rope, POSITIONS), strict=True):
            assert actual.dtype == jnp.float32
            assert actual.shape == (len(POSITIONS), 64)
            assert abs(np.asarray(actual, np.float64) - expected).max() <= 1e-6


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**31), 2**31 - 1), st.floats(1e-7, 1.0), st.floats(0.5, 2.0))
@example(-5, 1e-4, 1.0)
def test_tables_are_exact_for_any_frequency(position: int, frequency: float, m: float):
    """Up to 2^31 the precision is limited by the float64 frequency itself: p f 2^-53 radians."""
    rope = Rope(np.array([frequency]), m)
    computed = tables(rope.rotation(), jnp.array([position], jnp.int32))
    for actual, expected in zip(computed, exact(rope, np.array([position])), strict=True):
        assert abs(float(actual[0, 0]) - expected[0, 0]) <= m * 1.5e-6


def test_special_frequencies():
    rope = Rope(np.array([0.0, np.pi, np.pi / 2, 1e-12]))
    cos, sin = tables(rope.rotation(), jnp.arange(8))
    np.testing.assert_allclose(cos[:, 0], 1)
    np.testing.assert_allclose(cos[:, 1], [1, -1] * 4, atol=1e-6)
    np.testing.assert_allclose(sin[:, 2], [0, 1, 0, -1] * 2, atol=1e-6)
    np.testing.assert_allclose(sin[:, 3], np.arange(8) * 1e-12, atol=1e-9)


def test_float32_angles_are_those_of_transformers():
    """cos and sin of float32(p) * float32(f), as in transformers, and their error at 131,071."""
    rope = Yarn(8.0).rope(LLAMA2, 32768)
    angles = np.asarray(POSITIONS, np.float32)[:, None] * rope.inv_freq.astype(np.float32)
    cos, sin = tables(rope.rotation("float32"), jnp.asarray(POSITIONS, jnp.int32))
    m = np.float32(rope.attention_factor)
    np.testing.assert_allclose(cos, np.cos(angles) * m, atol=5e-7)
    np.testing.assert_allclose(sin, np.sin(angles) * m, atol=5e-7)
    exact_cos, exact_sin = exact(rope, POSITIONS)
    error = max(abs(cos - exact_cos).max(), abs(sin - exact_sin).max())
    assert 1e-3 < error < 2e-2
    with pytest.raises(ValueError, match="angles 'bfloat16' are not known"):
        rope.rotation("bfloat16")


@pytest.mark.parametrize("angles", ["exact", "float32"])
def test_shapes_depend_on_head_dim_alone(angles: str):
    """One compiled program serves every method, factor and length."""
    shapes = set()
    for scaling in [*SCALINGS, Yarn(2.0, attention_factor=1.0)]:
        for length in (1, 4096, 10**6):
            rotation = scaling.rope(LLAMA2, length).rotation(angles)
            shapes.add(str(jax.tree.map(lambda x: (x.shape, x.dtype), rotation)))
    assert len(shapes) == 1


def equations(jaxpr):
    """Every equation of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from equations(getattr(inner, "jaxpr", inner))


def test_a_bfloat16_model_has_no_bfloat16_positions_or_frequencies():
    rotation = Yarn(4.0).rope(tiny.CONFIG.rope_base(), 64).rotation()
    ids = jnp.zeros((1, 32), jnp.int32)

    def logits(*arguments):
        setup = ModelSetup(tiny.CONFIG, Causal(), "dense", "bfloat16", Mesh())
        return _logits(*arguments, setup=setup)

    jaxpr = jax.make_jaxpr(logits)(tiny.params(), ids, ids, None, rotation)
    num_tables = 0
    num_bfloat16 = 0
    for equation in equations(jaxpr.jaxpr):
        variables = (*equation.invars, *equation.outvars)
        dtypes = [x.aval.dtype for x in variables if hasattr(x.aval, "dtype")]
        num_bfloat16 += jnp.bfloat16 in dtypes
        if equation.primitive.name in ("cos", "sin"):
            num_tables += 1
            assert set(dtypes) == {jnp.dtype("float32")}
        if equation.primitive.name == "convert_element_type" and dtypes[-1] == jnp.bfloat16:
            assert dtypes[0] == jnp.float32, "integers never become bfloat16"
    assert num_tables >= 2
    assert num_bfloat16 > 20


def test_rotation_turns_every_pair_by_its_angle():
    """Pair (x_i, x_{i + H/2}), as a complex number, times m e^{i angle}; as in transformers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = rng.integers(0, 10**6, (2, 5))
    rope = Rope(rng.uniform(0, 1, 4), 1.25)
    cos, sin = tables(rope.rotation(), jnp.asarray(positions))
    actual = np.asarray(rotate(jnp.asarray(x), cos, sin))
    angles = positions[..., None, None] * rope.inv_freq
    z = (x[..., :4] + 1j * x[..., 4:]) * 1.25 * np.exp(1j * angles)
    np.testing.assert_allclose(actual, np.concatenate([z.real, z.imag], -1), atol=1e-5)


def test_rotation_computes_in_float32_and_keeps_the_dtype():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 2, 8)), jnp.bfloat16)
    rotation = Rope(inverse_frequencies(8, 1e4)).rotation()
    cos, sin = tables(rotation, jnp.arange(100000, 100004)[None])
    rotated = rotate(x, cos, sin)
    assert rotated.dtype == jnp.bfloat16
    in_float32 = rotate(x.astype(jnp.float32), cos, sin)
    assert (rotated == in_float32.astype(jnp.bfloat16)).all()


@pytest.mark.parametrize("m", [1.0, 1.2079441542])
@pytest.mark.parametrize("angles", ["exact", "float32"])
def test_scores_depend_on_distances_only_and_scale_with_m_squared(angles: str, m: float):
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 128)), jnp.float32) for _ in range(2))
    rope = Rope(Yarn(8.0).rope(LLAMA2, 0).inv_freq, m)

    def score(query: int, key: int, rope: Rope = rope) -> float:
        rotation = rope.rotation(angles)
        rotated_q = rotate(q, *tables(rotation, jnp.array([[query]])))
        rotated_k = rotate(k, *tables(rotation, jnp.array([[key]])))
        return float((rotated_q * rotated_k).sum())

    expected = score(17, 5)
    assert expected == pytest.approx(m**2 * score(17, 5, Rope(rope.inv_freq)), rel=1e-5)
    tolerance = 1e-4 if angles == "exact" else 0.3
    for start in (0, 1000, 131000):
        assert score(start + 12, start) == pytest.approx(expected, abs=tolerance)
    assert score(5, 17) != pytest.approx(expected, abs=1e-2)


def test_inv_freq_is_float64_of_the_definition():
    assert inverse_frequencies(128, 1e4).dtype == np.float64
    expected = [1e4 ** (-2 * i / 128) for i in range(64)]
    np.testing.assert_allclose(LLAMA2.inv_freq, expected, rtol=1e-15)


def test_a_rotation_made_inside_a_trace_is_a_value():
    """`LM` keeps rotations; one that belongs to a trace would be useless after it."""
    rotations = []

    @jax.jit
    def trace():
        rope = Linear(2.0).rope(LLAMA2, 0)
        rotations.extend([rope.rotation("exact"), rope.rotation("float32")])

    trace()
    assert all(x.sum() > 0 for x in jax.tree.leaves(rotations))


@dataclasses.dataclass(frozen=True)
class FollowsTheLength(RopeScaling):
    """Reads `seq_len` beyond `start` tokens, and may forget to declare it."""

    start: int = 0

    def rope(self, base: RopeBase, seq_len: int) -> Rope:
        return Rope(base.inv_freq / (1 + max(0, seq_len - self.start)))


def test_a_scaling_that_follows_the_length_undeclared_is_refused():
    """At the first length if a long text already differs there, else at the first that does."""
    message = "FollowsTheLength gives other frequencies at .* set depends_on_length = True"
    for function in (rope_at, rotation_at):
        with pytest.raises(ValueError, match=message):
            function(FollowsTheLength(), LLAMA2, 4096)
        far = FollowsTheLength(start=10**6)
        function(far, LLAMA2, 10**6)
        with pytest.raises(ValueError, match=message):
            function(far, LLAMA2, 10**6 + 1)


def test_fixed_frequencies_are_one_object_at_every_length():
    yarn = Yarn(8.0)
    dynamic = DynamicNTK(2.0)
    assert rope_at(yarn, LLAMA2, 1) is rope_at(yarn, LLAMA2, 10**6)
    assert rotation_at(yarn, LLAMA2, 1) is rotation_at(yarn, LLAMA2, 10**6)
    assert rope_at(yarn, LLAMA2, 1).equals(yarn.rope(LLAMA2, 32768))
    for length in (4096, 8192):
        assert rope_at(dynamic, LLAMA2, length).equals(dynamic.rope(LLAMA2, length))
    assert not rope_at(dynamic, LLAMA2, 8192).equals(rope_at(dynamic, LLAMA2, 4096))


def test_a_scaling_may_refuse_lengths_that_are_not_used():
    @dataclasses.dataclass(frozen=True)
    class LimitedLength(RopeScaling):
        def rope(self, base: RopeBase, seq_len: int) -> Rope:
            if seq_len > 8192:
                raise ValueError(f"{seq_len} tokens are out of reach")
            return Rope(base.inv_freq)

    assert rope_at(LimitedLength(), LLAMA2, 8192).equals(Rope(LLAMA2.inv_freq))
    with pytest.raises(ValueError, match="out of reach"):
        rope_at(LimitedLength(), LLAMA2, 8193)
