"""Laws of all frequency methods over random settings: transformers, limits, JSON, precision."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctxext.interop.ropespec import rope_from_config, rope_to_config
from ctxext.methods import all_methods, example, seam
from ctxext.methods.abf import ABF
from ctxext.methods.cope import CoPE, HardClip
from ctxext.methods.custom import Custom
from ctxext.methods.giraffe import PowerBasis, TruncatedBasis
from ctxext.methods.linear import DynamicLinear, Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import DynamicLongRope, LongRope
from ctxext.methods.long_rope2 import LongRope2
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.ntk_by_parts import NTKByParts
from ctxext.methods.ntk_mixed import NTKMixed
from ctxext.methods.p_rope import PRope
from ctxext.methods.part_ntk import DynamicPartNTK, PartNTK
from ctxext.methods.resonance import Resonance
from ctxext.methods.revised_yarn import RevisedYarn
from ctxext.methods.yarn import DynamicYarn, Yarn
from ctxext.prove.reference.hf import frequencies
from ctxext.rope import Rope, RopeBase, RopeScaling, Unscaled, rope_at
from ctxext.serialization import from_json, to_json
from support.llamas import TINY

LLAMA2 = RopeBase(128, 1e4, 4096)
HALF = TINY.head_dim // 2
factors = st.integers(1, 64) | st.floats(1, 64)
thetas = st.floats(1e3, 1e8)
maybe_m = st.none() | st.floats(0.5, 2)
divisors = st.lists(st.floats(0.5, 100), min_size=HALF, max_size=HALF).map(tuple)
at_least_one = divisors.map(lambda x: tuple(sorted(max(1, d) for d in x)))
betas = st.tuples(st.floats(0.25, 8), st.floats(1.5, 32)).map(
    lambda x: {"beta_slow": x[0], "beta_fast": x[0] * x[1]}
)


def with_betas(
    method: type, *args: st.SearchStrategy, **fields: st.SearchStrategy
) -> st.SearchStrategy:
    """Instances of a method with these arguments and a pair of betas."""
    constructors = st.builds(functools.partial, st.just(method), *args, **fields)
    return st.builds(lambda constructor, betas: constructor(**betas), constructors, betas)


STRATEGIES = {
    Unscaled: st.just(Unscaled()),
    ABF: st.builds(ABF, thetas),
    Linear: st.builds(Linear, factors),
    DynamicLinear: st.just(DynamicLinear()),
    NTK: st.builds(NTK, factors),
    DynamicNTK: st.builds(DynamicNTK, factors),
    Yarn: with_betas(
        Yarn,
        factors,
        attention_factor=maybe_m,
        truncate=st.booleans(),
        extrapolation_factor=st.just(1.0) | st.floats(0, 1),
    ),
    DynamicYarn: with_betas(DynamicYarn, factors, st.booleans()),
    NTKByParts: with_betas(NTKByParts, factors, truncate=st.booleans()),
    PartNTK: st.builds(PartNTK, factors, st.floats(0, 1), st.floats(0, 1)),
    DynamicPartNTK: st.just(DynamicPartNTK()),
    RevisedYarn: with_betas(RevisedYarn, factors, attention_factor=maybe_m),
    Llama3: st.builds(Llama3, factors, st.floats(0.5, 2), st.floats(3, 32)),
    LongRope: st.builds(LongRope, factors, divisors, divisors, maybe_m),
    DynamicLongRope: st.builds(DynamicLongRope, st.floats(1.5, 64), at_least_one, maybe_m),
    PowerBasis: st.builds(PowerBasis, factors, st.floats(0.1, 2)),
    TruncatedBasis: st.builds(
        TruncatedBasis, factors, st.integers(16, 10**6), st.just(0.0) | st.floats(0, 2)
    ),
    PRope: st.builds(PRope, factors, st.floats(0, 1)),
    Custom: st.builds(Custom, divisors, st.floats(0.5, 2)),
    NTKMixed: st.builds(NTKMixed, factors, st.floats(0, 2), st.none() | st.floats(0, 1)),
    LongRope2: st.builds(LongRope2, factors, st.none() | st.integers(0, HALF - 1)),
}
wrapped = st.sampled_from(
    (Unscaled(), Yarn(4.0, beta_fast=4.0), NTK(3.0), PRope(1.0, 0.5), DynamicNTK(2.0))
)
STRATEGIES |= {
    CoPE: st.builds(CoPE, st.integers(0, 20), inner=wrapped),
    HardClip: st.builds(HardClip, st.integers(0, 20), inner=wrapped),
    Resonance: st.builds(Resonance, inner=wrapped | st.builds(CoPE, inner=wrapped)),
}
CLASSES = [method for method in all_methods().values() if seam(method) == "rope"]
SCALINGS = {
    method: STRATEGIES.get(method, st.just(example(method, TINY.rope_base(), factor=4.0)))
    for method in CLASSES
}
"""Every frequency method that is discovered: with random settings, or else by its example."""
HF_STATES_THE_LENGTH = {DynamicNTK, LongRope, LongRope2}
scalings = st.sampled_from(CLASSES).flatmap(SCALINGS.get)
configs = st.builds(
    functools.partial(dataclasses.replace, TINY),
    rope_theta=thetas,
    max_position_embeddings=st.integers(64, 131072),
)


def test_there_are_strategies_for_no_method_that_is_gone():
    assert set(STRATEGIES) <= set(CLASSES)


@settings(max_examples=300, deadline=None)
@given(scalings, configs, st.floats(0.1, 40))
def test_methods_declare_truly_whether_they_follow_the_length(scaling, config, share):
    base = config.rope_base()
    seq_len = round(share * config.max_position_embeddings)
    assert rope_at(scaling, base, seq_len).equals(scaling.rope(base, seq_len))


def transformers_reads(keys: dict, seq_len: int) -> tuple[np.ndarray, float]:
    """(inv_freq, attention factor) of transformers for these keys of config.json."""
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    keys = json.loads(json.dumps(keys, allow_nan=False))
    config = transformers.LlamaConfig(**dataclasses.asdict(TINY) | keys)
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        embedding = LlamaRotaryEmbedding(config)
        return embedding.inv_freq.double().numpy(), embedding.attention_scaling
    inv_freq, m = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=seq_len)
    return inv_freq.double().numpy(), m


def assert_equals_hf(rope: Rope, hf: tuple[np.ndarray, float], base: np.ndarray) -> None:
    """Compare with transformers.

    It computes in float32: powers are off by 1e-6, and blends by a rounding.
    """
    inv_freq, attention_factor = hf
    tolerance = 3e-6 * rope.inv_freq + 3e-7 * base + 2e-12
    assert (abs(inv_freq - rope.inv_freq) <= tolerance).all()
    assert attention_factor == pytest.approx(rope.attention_factor, rel=1e-7)


@settings(max_examples=300, deadline=None)
@given(scalings, configs, st.floats(0.1, 40))
def test_transformers_reads_the_frequencies_that_we_write(scaling, config, share):
    """Every method: as its own type, or as generic longrope, or refused: the length decides."""
    base = config.rope_base()
    seq_len = round(share * config.max_position_embeddings)
    if scaling.depends_on_length and type(scaling) not in HF_STATES_THE_LENGTH:
        with pytest.raises(
            ValueError, match="changes its frequencies with the length.*export a static scaling"
        ):
            rope_to_config(scaling, config, seq_len)
        return
    keys = rope_to_config(scaling, config, seq_len)
    rope = scaling.rope(base, seq_len)
    assert_equals_hf(rope, transformers_reads(keys, seq_len), base.inv_freq)
    theta, window, again = rope_from_config(keys)
    read_back = again.rope(RopeBase(TINY.head_dim, theta, window), seq_len)
    np.testing.assert_allclose(read_back.inv_freq, rope.inv_freq, rtol=1e-13, atol=2e-12)
    assert read_back.attention_factor == pytest.approx(rope.attention_factor, rel=1e-15)
    written = LongRope if type(scaling) is LongRope2 else type(scaling)
    assert not again.depends_on_length or type(again) is written


listed = divisors.map(list)
HF_FIELDS = {
    "default": {},
    "linear": {"factor": factors},
    "dynamic": {"factor": factors},
    "yarn": {
        "factor": factors,
        "attention_factor": maybe_m,
        "truncate": st.booleans(),
        "mscale": st.none() | st.floats(0.5, 2),
        "mscale_all_dim": st.none() | st.floats(0.5, 2),
    },
    "llama3": {
        "factor": factors,
        "low_freq_factor": st.floats(0.5, 2),
        "high_freq_factor": st.floats(3, 32),
    },
    "longrope": {
        "factor": st.none() | factors,
        "attention_factor": maybe_m,
        "short_factor": listed,
        "long_factor": listed,
    },
    "proportional": {"factor": factors, "partial_rotary_factor": st.floats(0, 1)},
}
NO_WINDOW = {"default", "linear", "dynamic", "proportional"}


@settings(max_examples=500, deadline=None)
@given(
    st.data(),
    st.sampled_from(list(HF_FIELDS)),
    thetas,
    st.integers(64, 32768),
    st.integers(1, 8),
    st.booleans(),
)
def test_we_read_the_same_frequencies_as_transformers_from_any_config(
    data, kind, theta, window, times, old
):
    spec = {"rope_type": kind}
    for field, strategy in HF_FIELDS[kind].items():
        value = data.draw(strategy)
        if value is not None:
            spec[field] = value
    if kind == "yarn":
        spec |= data.draw(betas)
    length = window if kind in NO_WINDOW else window * times
    extra = {} if kind in NO_WINDOW - {"linear"} else {"original_max_position_embeddings": window}
    keys = {
        "max_position_embeddings": length,
        "rope_parameters": {**spec, **extra, "rope_theta": theta},
    }
    if old:
        # As transformers 4 writes it. The first LongRoPE checkpoints call it "su", and have L at
        # the top level.
        spec["type"] = "su" if kind == "longrope" else spec["rope_type"]
        del spec["rope_type"]
        ours = {
            "max_position_embeddings": length,
            "rope_theta": theta,
            "rope_scaling": spec,
            **extra,
        }
    seq_len = data.draw(st.integers(1, 4 * length))
    read_theta, read_window, scaling = rope_from_config(ours if old else keys)
    assert (read_theta, read_window) == (theta, window)
    base = RopeBase(TINY.head_dim, theta, window)
    rope = scaling.rope(base, seq_len)
    assert_equals_hf(rope, transformers_reads(keys, seq_len), base.inv_freq)
    inv_freq, m = frequencies(keys["rope_parameters"], theta, TINY.head_dim, seq_len, keys)
    np.testing.assert_allclose(inv_freq, rope.inv_freq, rtol=1e-10)
    assert m == pytest.approx(rope.attention_factor, rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(scalings)
def test_json_gives_the_same_method(scaling: RopeScaling):
    assert from_json(json.loads(json.dumps(to_json(scaling), allow_nan=False))) == scaling


ORDERED = set(SCALINGS) - {Custom, LongRope, LongRope2}
"""All but the methods whose order is that of their vectors, or of the critical pair chosen."""


@settings(max_examples=500, deadline=None)
@given(scalings, configs, st.floats(0.1, 40))
def test_wavelengths_grow_from_pair_to_pair(scaling, config, share):
    if type(scaling) not in ORDERED:
        return
    base = config.rope_base()
    inv_freq = scaling.rope(base, round(share * config.max_position_embeddings)).inv_freq
    assert inv_freq.dtype == np.float64
    assert (np.diff(inv_freq) <= 1e-15).all()
    assert (inv_freq >= 0).all()
    if type(scaling) not in (ABF, Resonance):  # which rounds some wavelengths down
        assert (inv_freq <= base.inv_freq * (1 + 1e-12)).all()


ONE = (1.0,) * 64
LONG = tuple(np.linspace(1, 8, 64).tolist())
FACTOR_ONE = (
    Linear,
    NTK,
    DynamicNTK,
    NTKByParts,
    PartNTK,
    Yarn,
    DynamicYarn,
    RevisedYarn,
    Llama3,
)
PLAIN = [
    *(method(1.0) for method in FACTOR_ONE),
    ABF(1e4),
    PRope(1.0, 1.0),
    LongRope(1.0, ONE, ONE),
    Custom(ONE, 1.0),
    DynamicLinear(),
    DynamicPartNTK(),
    DynamicYarn(4.0, finetuned=False),
    DynamicLongRope(4.0, (4.0,) * 64, attention_factor=1.0),
    TruncatedBasis(1.0, 10**6),
    PowerBasis(1.0, 1e-18),
    NTKMixed(1.0),
    CoPE(1),
    HardClip(0),
    CoPE(0, inner=HardClip(0, inner=Linear(1.0))),
]
"""Methods that stretch nothing up to the window of pre-training."""


@pytest.mark.parametrize("scaling", PLAIN, ids=lambda s: str(s)[:50])
def test_without_stretching_methods_are_plain_rope(scaling: RopeScaling):
    for seq_len in (1, 2048, 4096):
        rope = scaling.rope(LLAMA2, seq_len)
        np.testing.assert_allclose(rope.inv_freq, LLAMA2.inv_freq, rtol=1e-14)
        assert rope.attention_factor == 1
        assert rope.leading is None


def test_dynamic_methods_are_their_static_selves_at_the_length():
    def same(a: RopeScaling, b: RopeScaling, seq_len: int) -> bool:
        x = a.rope(LLAMA2, seq_len)
        y = b.rope(LLAMA2, seq_len)
        same_frequencies = np.allclose(x.inv_freq, y.inv_freq, rtol=1e-14, atol=0)
        return same_frequencies and x.attention_factor == y.attention_factor

    assert same(DynamicLinear(), Linear(3.0), 12288)
    assert same(DynamicPartNTK(), PartNTK(3.0), 12288)
    assert same(DynamicYarn(1.0), Yarn(3.0), 12288)
    assert same(NTKByParts(3.0), Yarn(3.0, attention_factor=1.0), 0)
    # Fine-tuned: never less than in training.
    for seq_len in (1, 4096, 4097, 8192):
        assert same(DynamicYarn(2.0), Yarn(2.0), seq_len)
        assert same(DynamicYarn(2.0, finetuned=False), Unscaled(), seq_len)
    assert same(DynamicYarn(2.0), DynamicYarn(2.0, finetuned=False), 8193)
    dynamic = DynamicLongRope(8.0, LONG)
    static = LongRope(8.0, ONE, LONG)
    for seq_len in (100, 4096, 32768):
        assert same(dynamic, static, seq_len)
    unclamped = dataclasses.replace(dynamic, clamp=False)
    assert (unclamped.rope(LLAMA2, 2048).inv_freq[1:] > LLAMA2.inv_freq[1:]).all()
    assert same(unclamped, dynamic, 10000)
    assert not same(unclamped, dynamic, 2048)


tables = jax.jit(lambda rotation, positions: rotation.tables(positions))
EVERY = [
    *(example(method, LLAMA2, factor=8.0) for method in CLASSES),
    LongRope(8.0, ONE, LONG, leading_positions=256),
]


@pytest.mark.parametrize("scaling", EVERY, ids=lambda s: type(s).__name__)
def test_tables_are_exact_at_131071(scaling: RopeScaling):
    positions = np.r_[0:300, 4090:4100, 131000:131072]
    rope = scaling.rope(LLAMA2, 131072)
    inv_freq = np.tile(rope.inv_freq, (len(positions), 1))
    m = np.full((len(positions), 1), rope.attention_factor)
    if rope.leading is not None:
        is_leading = (positions < 256)[:, None]
        inv_freq = np.where(is_leading, LLAMA2.inv_freq, inv_freq)
        m = np.where(is_leading, 1.0, m)
    angles = positions[:, None] * inv_freq.astype(np.longdouble)
    for angle, tolerance in (("exact", 1e-6), ("float32", 2e-2)):
        cos, sin = tables(rope.rotation(angle), jnp.asarray(positions, jnp.int32))
        assert abs(np.asarray(cos, np.float64) - m * np.cos(angles)).max() <= tolerance
        assert abs(np.asarray(sin, np.float64) - m * np.sin(angles)).max() <= tolerance


@pytest.mark.parametrize("angles", ["exact", "float32"])
def test_leading_positions_keep_plain_rope(angles: str):
    method = LongRope(8.0, ONE, LONG, leading_positions=4)
    positions = jnp.asarray([[0, 3, 4, 5], [70000, 2, 3, 131071]], jnp.int32)
    first = np.asarray(positions < 4)[..., None]
    plain = Unscaled().rope(LLAMA2, 8192).rotation(angles)
    rest = LongRope(8.0, ONE, LONG).rope(LLAMA2, 8192).rotation(angles)
    before = tables._cache_size()
    actual_tables = tables(method.rope(LLAMA2, 8192).rotation(angles), positions)
    for actual, from_plain, from_rest in zip(
        actual_tables, tables(plain, positions), tables(rest, positions), strict=True
    ):
        np.testing.assert_array_equal(actual, np.where(first, from_plain, from_rest))
    # One more program at most, whatever their number, the list in use, or the caller.
    made_in_jit = []
    jax.jit(lambda: made_in_jit.append(method.rope(LLAMA2, 8192).rotation(angles)))()
    more_leading = dataclasses.replace(method, leading_positions=9)
    for rotation in (more_leading.rope(LLAMA2, 100).rotation(angles), *made_in_jit):
        tables(rotation, positions)
    assert tables._cache_size() - before <= 2


SHORT = (1.0,) * HALF
SAME_SPEED = RopeBase(16, 1.0, 64)
ONE_PAIR = RopeBase(2, 1e4, 64)
BAD = [
    (lambda: ABF(1.0), "rope_theta must be a finite number above 1, such as 500000, got 1.0"),
    (lambda: ABF(float("inf")), "rope_theta must be a finite"),
    (
        lambda: PowerBasis(2.0, 0.0),
        "power must be positive and finite, such as 0.5, got 0.0; 0 would be Linear",
    ),
    (
        lambda: TruncatedBasis(2.0, 0),
        "truncate_length must be at least 1, such as the window of pre-training, got 0",
    ),
    (lambda: TruncatedBasis(2.0, 64, -1.0), "power must be a finite number from 0"),
    (lambda: PRope(1.0, 1.5), "partial_rotary_factor must be in 0 .. 1, such as 0.75, got 1.5"),
    (lambda: PRope(1.0, float("nan")), "partial_rotary_factor must be in"),
    (
        lambda: PartNTK(2.0, ntk_factor=2.0),
        r"ntk_factor must be in 0 .. 1 \(1 is the authors'\), got 2.0",
    ),
    (lambda: PartNTK(2.0, extrapolation_factor=-1.0), "extrapolation_factor must be in"),
    (lambda: Yarn(2.0, extrapolation_factor=1.1), "extrapolation_factor must be in"),
    (
        lambda: Yarn(2.0, attention_factor=0.0),
        r"attention_factor must be positive and finite \(1 changes nothing\)",
    ),
    (lambda: RevisedYarn(2.0, attention_factor=-1.0), "attention_factor must be positive"),
    (
        lambda: RevisedYarn(2.0, 1.0, 2.0),
        "need beta_fast >= beta_slow > 0, such as 32 and 1, got 1.0 and 2.0",
    ),
    (lambda: NTKByParts(2.0, 1.0, 2.0), "need beta_fast >= beta_slow"),
    (lambda: DynamicYarn(2.0, True, float("inf")), "need beta_fast >= beta_slow"),
    (
        lambda: LongRope(2.0, (0.0,), SHORT),
        "short_factor must be positive and finite; 1e12 stands for",
    ),
    (lambda: LongRope(2.0, SHORT, (float("inf"),)), "long_factor must be positive and finite"),
    (lambda: LongRope(2.0, SHORT, SHORT, 0.0), "attention_factor must be positive"),
    (
        lambda: LongRope(2.0, SHORT, SHORT, leading_positions=-1),
        r"leading_positions must be 0 \(none\) or more",
    ),
    (
        lambda: LongRope(2.0, SHORT, SHORT).rope(LLAMA2, 1),
        "short_factor: 8 divisors do not fit head_dim 128; give 64",
    ),
    (
        lambda: LongRope(2.0, ONE, SHORT).rope(LLAMA2, 1),
        "long_factor: 8 divisors do not fit head_dim 128; give 64",
    ),
    (lambda: DynamicLongRope(1.0, ONE), "factor must be above 1, such as 8"),
    (lambda: DynamicLongRope(2.0, (-1.0,)), "long_factor must be positive"),
    (
        lambda: DynamicLongRope(2.0, (2.0, 0.5)),
        "long_factor must be at least 1 for every pair.*got 0.5",
    ),
    (
        lambda: DynamicLongRope(2.0, (1.0, 3.0, 2.0)),
        "must not fall.* 3 is followed by 2; LongRope and Custom take any",
    ),
    (
        lambda: DynamicLongRope(2.0, (3.0,) * 64, clamp=False).rope(LLAMA2, 1),
        "not positive; set clamp to true",
    ),
    (lambda: Custom(ONE, float("nan")), "attention_factor must be positive"),
    (lambda: LongRope2(2.0, -1), "critical_pair must be 0 or more, got -1"),
    (
        lambda: LongRope2(2.0, 64).rope(LLAMA2, 9999),
        "critical_pair 64 does not fit head_dim 128; give at most 63",
    ),
    (
        lambda: LongRope2(2.0, 60, (2.0,)).rope(LLAMA2, 9999),
        "slow_divisors: 1 divisors do not fit head_dim 128 and critical_pair 60; give 4",
    ),
    (lambda: LongRope2(2.0, 60, (0.0,) * 4), "slow_divisors must be positive"),
    (
        lambda: LongRope2(2.0).rope(SAME_SPEED, 9999),
        "critical pair follows from a rope_theta above 1, got 1; give critical_pair",
    ),
    (lambda: Yarn(2.0).rope(SAME_SPEED, 1), "ramp .* needs a rope_theta above 1, got 1; Linear"),
    (lambda: NTK(2.0).rope(ONE_PAIR, 1), "NTK needs a head_dim of at least 4, got 2; Linear"),
]


@pytest.mark.parametrize("make, message", BAD, ids=[message[:60] for _, message in BAD])
def test_bad_settings_name_the_rule_and_what_would_work(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("factor", [0.5, 0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "method", [m for m in CLASSES if any(f.name == "factor" for f in dataclasses.fields(m))]
)
def test_factor_is_a_finite_number_of_at_least_one(method: type, factor: float):
    valid = example(method, LLAMA2, factor=4.0)
    with pytest.raises(ValueError, match="factor must be a finite number of at least 1"):
        dataclasses.replace(valid, factor=factor)
