"""Frequencies and attention factors against all cases of the authors' code (golden/rope.json)."""

import collections
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ctxext.interop.ropespec import rope_from_config
from ctxext.methods.abf import ABF
from ctxext.methods.giraffe import PowerBasis, TruncatedBasis
from ctxext.methods.linear import DynamicLinear, Linear
from ctxext.methods.llama3 import Llama3
from ctxext.methods.long_rope import DynamicLongRope, LongRope
from ctxext.methods.ntk import NTK, DynamicNTK
from ctxext.methods.p_rope import PRope
from ctxext.methods.part_ntk import BETAS, GAMMAS, DynamicPartNTK, PartNTK
from ctxext.methods.revised_yarn import RevisedYarn
from ctxext.methods.yarn import DynamicYarn, Yarn
from ctxext.rope import RopeBase, RopeScaling, Unscaled

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())["cases"]


def yarn(p: dict) -> Yarn:
    """mscale is a ratio of two temperatures; attn_factor multiplies m."""
    m = p.get("attention_factor")
    if p.get("mscale") and p.get("mscale_all_dim"):
        numerator = 0.1 * p["mscale"] * math.log(p["factor"]) + 1
        denominator = 0.1 * p["mscale_all_dim"] * math.log(p["factor"]) + 1
        m = numerator / denominator
    if "attn_factor" in p:
        m = p["attn_factor"] * (0.1 * math.log(p["factor"]) + 1)
    fields = ("beta_fast", "beta_slow", "truncate", "extrapolation_factor")
    options = {field: p[field] for field in fields if field in p}
    return Yarn(p["factor"], attention_factor=m, **options)


def part_ntk(p: dict) -> PartNTK:
    assert (p["beta_0"], p["beta_1"], p["gamma_0"], p["gamma_1"]) == (*BETAS, *GAMMAS)
    return PartNTK(p["factor"], p["ntk_factor"], p["extrapolation_factor"])


def dynamic_yarn(p: dict) -> DynamicYarn:
    """`max_position_embeddings` of the authors' code is the length of the fine-tuning."""
    window = p["original_max_position_embeddings"]
    factor = p.get("max_position_embeddings", window) / window
    return DynamicYarn(factor, p["finetuned"], p["beta_fast"], p["beta_slow"])


def hf_longrope(p: dict) -> LongRope:
    factor = p.get("factor", p["max_position_embeddings"] / p["original_max_position_embeddings"])
    return LongRope(
        factor, tuple(p["short_factor"]), tuple(p["long_factor"]), p.get("attention_factor")
    )


def longrope(p: dict) -> LongRope:
    m = {"su": None, "yarn": 0.1 * math.log(p["factor"]) + 1}[p["magnitude_scaling_policy"]]
    return LongRope(p["factor"], tuple(p["long_factor"]), tuple(p["long_factor"]), m)


def dynamic_longrope(p: dict) -> DynamicLongRope:
    """Without the clamp, which the authors' code does not have; see test_laws for the clamp."""
    return DynamicLongRope(p["factor"], tuple(p["long_factor"]), clamp=False)


CASES = {
    "hf_default": (lambda p: Unscaled(), 4),
    "hf_abf": (lambda p: ABF(p["rope_theta"]), 8),
    "hf_linear": (lambda p: Linear(p["factor"]), 8),
    "yarn_linear": (lambda p: Linear(p["factor"]), 18),
    "pose_linear": (lambda p: Linear(p["factor"]), 20),
    "yarn_dynamic_linear": (lambda p: DynamicLinear(), 30),
    "yarn_ntk": (lambda p: NTK(p["factor"]), 18),
    "pose_ntk": (lambda p: NTK(p["factor"]), 20),
    "clex_ntk_prior": (lambda p: NTK(2 * p["t"] - 1), 12),
    "hf_dynamic": (lambda p: DynamicNTK(p["factor"]), 62),
    "yarn_dynamic_ntk": (lambda p: DynamicNTK(p["factor"]), 48),
    "pose_dynamic_ntk": (lambda p: DynamicNTK(p["factor"]), 10),
    "yarn_ntk_by_parts": (part_ntk, 20),
    "yarn_dynamic_ntk_by_parts": (lambda p: DynamicPartNTK(), 30),
    "hf_yarn": (yarn, 64),
    "yarn_yarn": (yarn, 22),
    "pose_yarn": (yarn, 2),
    "longrope_repo_yarn": (yarn, 4),
    "yarn_dynamic_yarn": (dynamic_yarn, 46),
    "pose_revised_yarn": (lambda p: RevisedYarn(p["factor"], p["beta_fast"], p["beta_slow"]), 24),
    "hf_llama3": (lambda p: Llama3(p["factor"], p["low_freq_factor"], p["high_freq_factor"]), 26),
    "hf_longrope": (hf_longrope, 24),
    "longrope_static": (longrope, 12),
    "longrope_dynamic": (dynamic_longrope, 16),
    "hf_proportional": (lambda p: PRope(p.get("factor", 1.0), p["partial_rotary_factor"]), 16),
    "giraffe_power": (lambda p: PowerBasis(p["factor"], p["power"]), 32),
    "giraffe_truncated": (lambda p: TruncatedBasis(p["factor"], p["truncate_length"]), 20),
    "giraffe_power_truncated": (
        lambda p: TruncatedBasis(p["factor"], p["truncate_length"], p["power"]),
        2,
    ),
}
"""Method of a golden case -> (the method here, from its parameters; how many cases there are)."""


def test_every_golden_case_belongs_to_a_method():
    counts = {name: count for name, (_, count) in CASES.items()}
    assert collections.Counter(case["method"] for case in GOLDEN) == counts
    assert len(counts) == 28
    assert sum(counts.values()) == 618
    assert {case["params"]["head_dim"] for case in GOLDEN} == {64, 128}


def assert_agrees(case: dict, scaling: RopeScaling, base: RopeBase, seq_len: int) -> None:
    """Compare to 2e-6, because the authors compute in float32; a zero must be exactly zero."""
    rope = scaling.rope(base, seq_len)
    np.testing.assert_allclose(
        rope.inv_freq, case["inv_freq"], rtol=2e-6, atol=0, err_msg=case["id"]
    )
    np.testing.assert_allclose(
        rope.attention_factor, case["attention_factor"], rtol=2e-6, err_msg=case["id"]
    )


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str):
    scaling, count = CASES[name]
    cases = [case for case in GOLDEN if case["method"] == name]
    for case in cases:
        p = case["params"]
        window = p.get("original_max_position_embeddings", p.get("max_position_embeddings", 4096))
        theta = 1e4 if name == "hf_abf" else p["rope_theta"]
        base = RopeBase(p["head_dim"], theta, window)
        assert_agrees(case, scaling(p), base, p.get("seq_len", 10**6))
    assert len(cases) == count


def test_golden_cases_as_config_json():
    """The same parameters as keys of config.json, as transformers reads them."""
    kinds = {
        "hf_default": "default",
        "hf_abf": "default",
        "hf_linear": "linear",
        "hf_dynamic": "dynamic",
        "hf_yarn": "yarn",
        "hf_llama3": "llama3",
        "hf_longrope": "longrope",
        "hf_proportional": "proportional",
    }
    cases = [case for case in GOLDEN if case["method"] in kinds]
    assert {case["method"] for case in GOLDEN if case["method"].startswith("hf_")} == set(kinds)
    for case in cases:
        p = dict(case["params"])
        head_dim = p.pop("head_dim")
        length = p.pop("max_position_embeddings")
        seq_len = p.pop("seq_len", 0)
        keys = {
            "max_position_embeddings": length,
            "rope_parameters": {"rope_type": kinds[case["method"]], **p},
        }
        theta, window, scaling = rope_from_config(keys)
        assert_agrees(case, scaling, RopeBase(head_dim, theta, window), seq_len)
    assert len(cases) == 212
