"""Wrappers, NTK-mixed, published divisors and LongRoPE2 against golden/rope2.json."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest

from ctxext.methods.cope import CoPE, HardClip
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import LongRope
from ctxext.methods.long_rope2 import LongRope2, default_critical_pair
from ctxext.methods.ntk_mixed import NTKMixed
from ctxext.methods.published_divisors import named_divisors, published_divisors
from ctxext.methods.resonance import Resonance
from ctxext.methods.yarn import Yarn
from ctxext.rope import Rope, RopeBase, RopeScaling, Unscaled

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope2.json").read_text())["cases"]
LLAMA2 = RopeBase(128, 1e4, 4096)
LLAMA3 = RopeBase(128, 5e5, 8192)
LLAMA3_LIST = "llama3_8b_longrope2"
COUNTS = {
    "cope": 17,
    "hardclip": 17,
    "cope_mask": 1,
    "ntk_mixed_b": 3,
    "resonance": 4,
    "resonance_yarn": 4,
    "resonance_angles": 1,
    "longrope_published": 30,
    "longrope2_published": 1,
    "longrope2_row_rope": 3,
    "longrope2_init": 3,
    "longrope2_critical_pair": 4,
}


def cases(name: str) -> list[dict]:
    chosen = [case for case in GOLDEN if case["method"] == name]
    assert len(chosen) == COUNTS[name]
    return chosen


def test_every_golden_case_belongs_to_a_test():
    assert collections.Counter(case["method"] for case in GOLDEN) == COUNTS
    assert sum(COUNTS.values()) == 88


def inner_of(p: dict) -> RopeScaling:
    """The scaling under the keys of transformers, or none."""
    inner = p.get("inner")
    if inner is None:
        return Unscaled()
    kind = inner["rope_type"]
    if kind == "llama3":
        return Llama3(inner["factor"], inner["low_freq_factor"], inner["high_freq_factor"])
    return {"yarn": Yarn, "linear": Linear}[kind](inner["factor"])


def base_of(p: dict) -> RopeBase:
    window = (p.get("inner") or p).get("original_max_position_embeddings", 4096)
    return RopeBase(p["head_dim"], p["rope_theta"], window)


SCALINGS = {
    "cope": lambda p: CoPE(p["clip"], inner=inner_of(p)),
    "hardclip": lambda p: HardClip(p["clip"], inner=inner_of(p)),
    "ntk_mixed_b": lambda p: NTKMixed(p["factor"], p["b"]),
}


def assert_agrees(case: dict, rope: Rope) -> None:
    """Compare to 2e-6, because the authors compute in float32; a zero must be exactly zero."""
    np.testing.assert_allclose(
        rope.inv_freq, case["inv_freq"], rtol=2e-6, atol=0, err_msg=case["id"]
    )
    m = case.get("attention_factor", rope.attention_factor)
    np.testing.assert_allclose(rope.attention_factor, m, rtol=2e-6, err_msg=case["id"])


@pytest.mark.parametrize("name", SCALINGS)
def test_golden(name: str):
    for case in cases(name):
        rope = SCALINGS[name](case["params"]).rope(base_of(case["params"]), 4096)
        assert_agrees(case, rope)


@pytest.mark.parametrize("name", ["resonance", "resonance_yarn"])
def test_resonance_rounds_wavelengths(name: str):
    """To 2e-6, but where float32 moves a wavelength over the half between two whole numbers."""
    for case in cases(name):
        p = case["params"]
        inner = Yarn(p["factor"], p["beta_fast"], p["beta_slow"]) if "factor" in p else Unscaled()
        base = base_of(p)
        rope = Resonance(inner=inner).rope(base, 4096)
        theirs = np.asarray(case["wavelengths"])
        before = 2 * np.pi / inner.rope(base, 4096).inv_freq
        assert (abs(before - theirs) <= 0.5 + 1e-6 * before).all()
        near_half = abs(before % 1 - 0.5) < 1e-6 * before
        np.testing.assert_array_equal(np.rint(before)[~near_half], theirs[~near_half])
        expected = np.where(near_half, rope.inv_freq, case["inv_freq"])
        assert_agrees(case | {"inv_freq": expected}, rope)
        wavelengths = 2 * np.pi / rope.inv_freq
        np.testing.assert_allclose(wavelengths, np.rint(before), rtol=1e-12)
        assert near_half[:30].sum() == 0, "the fast pairs, which change most, are all compared"


def test_the_mask_of_cope():
    """The spectrum of this theta is 1 to 1e-6, so that the mask itself is left."""
    (case,) = cases("cope_mask")
    inv_freq = CoPE().rope(RopeBase(40, 1.0000001, 4096), 4096).inv_freq
    np.testing.assert_allclose(inv_freq, case["mask"], atol=1e-6)


def test_angles_of_resonance_wrap_at_the_wavelength():
    (case,) = cases("resonance_angles")
    inv_freq = Resonance().rope(RopeBase(16, 100.0, 40), 40).inv_freq
    theirs = np.asarray(case["angles_pair_0_first_20"])
    ours = np.arange(20) * inv_freq[0]
    np.testing.assert_allclose(np.cos(ours - theirs), 1, atol=1e-12)
    np.testing.assert_allclose(2 * np.pi / inv_freq, case["wavelengths"], rtol=1e-12)


def test_published_lists_are_those_of_the_authors():
    """To the last bit of float32, which the files hold."""
    lists = published_divisors()
    assert len(lists) == 31
    falling = 0
    for case in cases("longrope_published"):
        name = case["params"]["file"].removesuffix(".csv")
        divisors = named_divisors(name, LLAMA2)
        np.testing.assert_array_equal(np.float32(divisors), np.float32(case["factors"]))
        assert lists[name].model == case["params"]["model"]
        falling += not case["monotone"]
        kilo = name.split("_")[-1] if name.startswith("ft") else name.split("_")[0]
        assert lists[name].factor == int(kilo.removesuffix("k")) / 4
    assert falling == 9
    (case,) = cases("longrope2_published")
    assert list(named_divisors(LLAMA3_LIST, LLAMA3)) == case["factors"]
    assert lists[LLAMA3_LIST].factor == 131072 / 8192


def test_published_lists_by_name_follow_the_row_as_the_authors_do():
    scaling = LongRope(16.0, "plain", LLAMA3_LIST)
    for case in cases("longrope2_row_rope"):
        longest_position = case["params"]["max_position_in_row"]
        assert_agrees(case, scaling.rope(LLAMA3, longest_position + 1))


def test_longrope2_fills_below_the_critical_pair():
    """The published list of Llama 3, from its free divisors alone."""
    (case,) = cases("longrope2_published")
    critical = case["params"]["critical_pair"]
    filled = LongRope2(16.0, critical, tuple(case["factors"][critical:])).divisors(LLAMA3)
    np.testing.assert_allclose(filled, case["factors"], rtol=1e-9)


def test_longrope2_starts_as_the_search_does():
    for case in cases("longrope2_init"):
        p = case["params"]
        slow = tuple(case["factors"][p["critical_pair"] :])
        scaling = LongRope2(float(p["length_scale"]), p["critical_pair"], slow)
        np.testing.assert_allclose(scaling.divisors(LLAMA3), case["factors"], rtol=1e-7)
        if p["index"] == 0:
            default = LongRope2(float(p["length_scale"]), p["critical_pair"])
            np.testing.assert_allclose(default.divisors(LLAMA3), case["factors"], rtol=1e-7)


def test_the_critical_pair_of_longrope2():
    for case in cases("longrope2_critical_pair"):
        p = case["params"]
        base = RopeBase(p["head_dim"], p["rope_theta"], p["original_max_position_embeddings"])
        assert default_critical_pair(base) == case["default_critical_pair"]
    divisors = LongRope2(16.0).divisors(LLAMA3)
    assert divisors[34] == 16
    assert divisors[33] == pytest.approx(16 ** (33 / 34))


@pytest.mark.parametrize(
    ("name", "base", "message"),
    [
        ("ft_la2_128k", RopeBase(64, 1e4, 4096), "for Llama-2-7B, with head_dim 128; this .* 64"),
        ("ft_mis_128k", RopeBase(128, 1e4, 32768), "original_max_position_embeddings 4,096; .*768"),
        (LLAMA3_LIST, RopeBase(128, 1e4, 8192), "rope_theta 500,000; this model has 10,000"),
    ],
)
def test_a_list_for_another_model_is_refused(name: str, base: RopeBase, message: str):
    factor = published_divisors()[name].factor
    with pytest.raises(ValueError, match=f"the divisors {name} were searched .*{message}"):
        LongRope(factor, "plain", name).rope(base, 100)


def test_a_list_for_another_factor_and_an_unknown_name_are_refused():
    with pytest.raises(ValueError, match="ft_la2_128k were searched for factor 32, got factor 8"):
        LongRope(8.0, "plain", "ft_la2_128k")
    with pytest.raises(ValueError, match=r"short_factor: .* 'ft_la2_12k'; did you mean 'ft_la2_1"):
        LongRope(32.0, "ft_la2_12k", "ft_la2_128k")
    with pytest.raises(ValueError, match="long_factor: .*known: 4k_la2_128k, .*, plain"):
        LongRope(32.0, "plain", "zzzzzzzzzzzzzz")
