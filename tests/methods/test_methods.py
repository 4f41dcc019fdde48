"""Frequencies against published tables, bad input, and how methods are named and looked up."""

from pathlib import Path

import numpy as np
import pytest

from ctxext import methods
from ctxext.methods.abf import ABF
from ctxext.methods.linear import Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.lm_infinite import LMInfinite
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.p_rope import PRope
from ctxext.methods.pose import PoSE
from ctxext.methods.self_extend import SelfExtend
from ctxext.methods.yarn import Yarn
from ctxext.model.trainable import LINEARS, LoRA
from ctxext.rope import Rope, RopeBase, RopeScaling, Unscaled

LLAMA2 = RopeBase(128, 1e4, 4096)
STATIC = [Unscaled(), Linear(4.0), NTK(4.0), Yarn(4.0), Llama3(4.0)]


# d = 128, theta = 1e4, L = 4096, from transformers 5.23: the frequencies of these pairs, then m.
PAIRS = [0, 10, 20, 30, 40, 46, 50, 63]
TABLE = {
    Unscaled(): (
        "1 2.37137362e-1 5.62341288e-2 1.33352149e-2 3.16227786e-3 "
        "1.33352145e-3 7.49894185e-4 1.15478193e-4 1"
    ),
    Linear(2): (
        "0.5 1.18568681e-1 2.81170644e-2 6.66760746e-3 1.58113893e-3 "
        "6.66760723e-4 3.74947092e-4 5.77390965e-5 1"
    ),
    NTK(2): (
        "1 2.12430790e-1 4.51268405e-2 9.58632957e-3 2.03643157e-3 "
        "8.03896866e-4 4.32600791e-4 5.77390965e-5 1"
    ),
    Yarn(2): (
        "1 2.37137362e-1 5.62341288e-2 1.07707502e-2 1.94601715e-3 "
        "6.66760723e-4 3.74947092e-4 5.77390965e-5 1.0693147181"
    ),
    Llama3(2): (
        "1 2.37137362e-1 5.62341288e-2 1.33352149e-2 2.14059046e-3 "
        "6.66760723e-4 3.74947092e-4 5.77390965e-5 1"
    ),
    NTK(8): (
        "1 1.70471743e-1 2.90606134e-2 4.95401304e-3 8.44519178e-4 "
        "2.92146666e-4 1.43966652e-4 1.44347741e-5 1"
    ),
    Yarn(8): (
        "1 2.37137362e-1 5.62341288e-2 8.84740148e-3 1.03382161e-3 "
        "1.66690181e-4 9.37367731e-5 1.44347741e-5 1.2079441542"
    ),
    Llama3(8): (
        "1 2.37137362e-1 5.62341288e-2 1.33352149e-2 1.37432490e-3 "
        "1.66690181e-4 9.37367731e-5 1.44347741e-5 1"
    ),
    DynamicNTK(2): (
        "1 1.99189514e-1 3.96764651e-2 7.90313538e-3 1.57422165e-3 "
        "5.97896171e-4 3.13568453e-4 3.84927334e-5 1"
    ),
    DynamicNTK(1): (
        "1 2.12430790e-1 4.51268405e-2 9.58632957e-3 2.03643157e-3 "
        "8.03896866e-4 4.32600791e-4 5.77390965e-5 1"
    ),
}


@pytest.mark.parametrize("scaling", TABLE, ids=repr)
def test_published_values(scaling: RopeScaling):
    rope = scaling.rope(LLAMA2, 8192)
    actual = [*rope.inv_freq[PAIRS], rope.attention_factor]
    expected = [float(number) for number in TABLE[scaling].split()]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_yarn_ramp_uses_the_original_window():
    """A common mistake is to use the extended window, 8192, in place of 4096."""
    wrong = Yarn(2).rope(RopeBase(128, 1e4, 8192), 8192).inv_freq[40]
    assert wrong == pytest.approx(2.2136e-3, rel=1e-4)
    assert Yarn(2).rope(LLAMA2, 8192).inv_freq[40] == pytest.approx(1.9460e-3, rel=1e-4)


def test_abf_is_a_change_of_theta():
    expected = [
        1,
        1.28687382e-1,
        1.65604409e-2,
        2.13111960e-3,
        2.74248188e-4,
        8.01429487e-5,
        3.52922762e-5,
    ]
    for rope in (ABF(5e5).rope(LLAMA2, 4096), Unscaled().rope(RopeBase(128, 5e5, 4096), 4096)):
        np.testing.assert_allclose(rope.inv_freq[PAIRS[:-1]], expected, rtol=1e-6)
        assert rope.attention_factor == 1


def same(a: Rope, b: Rope) -> bool:
    same_frequencies = bool(np.allclose(a.inv_freq, b.inv_freq, rtol=1e-14, atol=0))
    return same_frequencies and a.attention_factor == b.attention_factor


@pytest.mark.parametrize("method", [Linear, NTK, Yarn, Llama3])
def test_factor_one_is_plain_rope(method: type):
    assert same(method(1.0).rope(LLAMA2, 4096), Unscaled().rope(LLAMA2, 4096))


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0])
def test_dynamic_ntk_is_plain_up_to_the_window_and_ntk_beyond(factor: float):
    for seq_len in (0, 1, 4095, 4096):
        assert same(DynamicNTK(factor).rope(LLAMA2, seq_len), Unscaled().rope(LLAMA2, seq_len))
    assert same(DynamicNTK(1).rope(LLAMA2, 4096 * 3), NTK(3).rope(LLAMA2, 0))
    lowest = [DynamicNTK(factor).rope(LLAMA2, n).inv_freq[-1] for n in (4096, 4097, 8192, 16384)]
    assert lowest == sorted(lowest, reverse=True)
    assert len(set(lowest)) == 4


@pytest.mark.parametrize("scaling", STATIC, ids=repr)
def test_static_scalings_ignore_the_length(scaling: RopeScaling):
    assert not scaling.depends_on_length
    assert same(scaling.rope(LLAMA2, 1), scaling.rope(LLAMA2, 10**6))


@pytest.mark.parametrize("scaling", [*STATIC, DynamicNTK(2.0)], ids=repr)
def test_frequencies_fall_and_stay_between_interpolated_and_plain(scaling: RopeScaling):
    inv_freq = scaling.rope(LLAMA2, 8192).inv_freq
    assert inv_freq.dtype == np.float64
    assert inv_freq.shape == (64,)
    assert (np.diff(inv_freq) < 0).all()
    assert (inv_freq <= LLAMA2.inv_freq * (1 + 1e-12)).all()
    assert (inv_freq >= LLAMA2.inv_freq / 4 * (1 - 1e-12)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Yarn(2, beta_fast=1, beta_slow=32),
        lambda: Yarn(2, beta_slow=0),
        lambda: Yarn(2, attention_factor=0),
        lambda: Yarn(2, attention_factor=float("nan")),
        lambda: Llama3(8, low_freq_factor=4, high_freq_factor=1),
        lambda: Llama3(8, low_freq_factor=0),
        lambda: SelfExtend(0, 8),
        lambda: SelfExtend(4, 0),
        lambda: LMInfinite(0),
        lambda: LMInfinite(16, -1),
        lambda: RopeBase(15, 1e4, 4096),
        lambda: RopeBase(128, 0, 4096),
        lambda: RopeBase(128, 1e4, 0),
    ],
)
def test_impossible_values_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_methods_are_discovered_and_have_several_names():
    known = methods.all_methods()
    expected = {
        "abf": ABF,
        "p-rope": PRope,
        "none": Unscaled,
        "linear": Linear,
        "ntk": NTK,
        "yarn": Yarn,
        "dynamic-ntk": DynamicNTK,
        "llama3": Llama3,
        "pose": PoSE,
        "self-extend": SelfExtend,
        "lm-infinite": LMInfinite,
    }
    assert expected.items() <= known.items()
    assert {"causal", "contiguous"} <= set(known)
    for name in ("dynamic-ntk", "dynamic_ntk", "DynamicNTK", "dynamicntk"):
        assert methods.find(name) is DynamicNTK
    assert methods.find("long-rope") is methods.find("longrope") is methods.find("LongRope")
    assert methods.find("pi") is Linear
    assert methods.Yarn is Yarn
    assert methods.seam(known["yarn"]) == "rope"
    assert methods.seam(known["pose"]) == "positions"
    assert methods.seam(known["causal"]) == "attention"
    names = {
        "DynamicNTK": "dynamic-ntk",
        "NTKByParts": "ntk-by-parts",
        "SelfExtend": "self-extend",
        "PoSE": "pose",
        "RePoSE": "re-pose",
        "ABF": "abf",
        "Llama3": "llama3",
        "LMInfinite": "lm-infinite",
    }
    for class_name, name in names.items():
        assert methods.method_name(type(class_name, (), {})) == name
    for cls in known.values():
        assert methods.find(methods.method_name(cls)) is cls
        assert methods.find(cls.__name__) is cls


@pytest.mark.parametrize(
    ("name", "message"),
    [("yrn", "did you mean 'yarn'"), ("zzzzzz", "known: "), ("nowhere.py:Thing", "does not exist")],
)
def test_an_unknown_name_is_an_error_with_a_hint(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        methods.find(name)


def test_make_names_what_is_wrong():
    assert methods.make("yarn", factor=2.0) == Yarn(2.0)
    with pytest.raises(ValueError, match="needs factor"):
        methods.make("yarn")
    with pytest.raises(ValueError, match="has no field fctor"):
        methods.make("yarn", fctor=2.0)
    with pytest.raises(AttributeError):
        _ = methods.Nothing


def test_a_method_can_live_in_a_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\n"
        "from ctxext.rope import Rope, RopeScaling\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Halved(RopeScaling):\n"
        "    factor: float\n"
        "    def rope(self, base, seq_len):\n"
        "        return Rope(base.inv_freq / self.factor)\n"
        "class Other: pass\n"
    )
    halved = methods.make(f"{file}:Halved", factor=2.0)
    assert same(halved.rope(LLAMA2, 4096), Linear(2.0).rope(LLAMA2, 4096))
    assert methods.find(f"{file}:Halved") is type(halved), (
        "one class per file, so that equal experiments are equal"
    )
    with pytest.raises(ValueError, match="has no method class Other"):
        methods.find(f"{file}:Other")


def test_labels_leave_defaults_out():
    assert methods.label([Yarn(4.0)]) == "yarn(factor=4)"
    expected = "linear(factor=2) + self-extend(group_size=4, neighbor_window=8)"
    assert methods.label([Linear(2), SelfExtend(4, 8)]) == expected
    assert methods.label([Unscaled()]) == methods.label([]) == "none"
    names = methods.label([LoRA(targets=LINEARS, quantize="nf4")])
    assert names == f"lora(targets={'/'.join(LINEARS)}, quantize=nf4)"
