"""Sample sizes against published figures and simulation; ICC against a brute-force ANOVA."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from ctxext.evals.power import (
    design_effect,
    detectable,
    effective_sample_size,
    icc,
    least_p,
    plan_sentence,
    required_pairs,
)
from ctxext.evals.stats import mcnemar, sign_flip


def test_the_known_sample_sizes():
    pairs = {
        (d, psi): required_pairs(d / 100, discordant=psi / 100)
        for d in (5, 10)
        for psi in (5, 10, 20)
    }
    assert (pairs[5, 10], pairs[5, 5], pairs[5, 20]) == (312, 155, 626)
    assert (pairs[10, 10], pairs[10, 20]) == (77, 155)
    # No difference is larger than the share of pairs that differ.
    assert pairs[10, 5] == pairs[10, 10]


@pytest.mark.parametrize("n", [4, 20, 60, 100, 312, 5000])
def test_detectable_is_the_inverse_of_required_pairs(n):
    for discordant in (0, 0.05, 0.1, 0.4):
        effect = detectable(n, discordant=discordant)
        if math.isfinite(effect):
            assert required_pairs(effect, discordant=discordant) <= n
            assert required_pairs(0.99 * effect, discordant=discordant) > 0.98 * n
    assert detectable(3) == detectable(0) == math.inf
    assert detectable(n, level=0.005) > detectable(n) or n == 4
    assert detectable(n, power=0.9) > detectable(n)


@pytest.mark.parametrize(
    ("n", "discordant", "level"),
    [(312, 0.1, 0.05), (77, 0.1, 0.05), (100, 0.2, 0.05), (60, 0.3, 0.05), (300, 0.2, 0.005)],
)
def test_simulated_pairs_have_that_power(n, discordant, level):
    effect = detectable(n, discordant=discordant, level=level)
    psi = max(discordant, effect)
    rng = np.random.default_rng(0)
    b, c, _ = rng.multinomial(n, [(psi + effect) / 2, (psi - effect) / 2, 1 - psi], size=4000).T
    # With all pairs on one side there are too few different outcomes for a normal quantile.
    if psi > 1.2 * effect:
        z = (b - c) / np.sqrt(b + c)
        assert np.mean(abs(z) > stats.norm.isf(level / 2)) == pytest.approx(0.8, abs=0.03)
    exact = np.mean([mcnemar(int(x), int(y)) < level for x, y in zip(b, c, strict=True)])
    assert 0.73 <= exact <= 0.81


def brute_force_icc(values, clusters):
    """The ICC from a one-way analysis of variance whose sums are written out."""
    groups = [
        [v for v, c in zip(values, clusters, strict=True) if c == key]
        for key in sorted(set(clusters))
    ]
    total = len(values)
    k = len(groups)
    grand = sum(values) / total
    between = sum(len(g) * (sum(g) / len(g) - grand) ** 2 for g in groups) / (k - 1)
    within = sum((v - sum(g) / len(g)) ** 2 for g in groups for v in g) / (total - k)
    f = stats.f_oneway(*groups).statistic
    assert between / within == pytest.approx(f)
    m = (total - sum(len(g) ** 2 for g in groups) / total) / (k - 1)
    return (f - 1) / (f - 1 + m)


def test_icc_equals_brute_force():
    rng = np.random.default_rng(1)
    for sizes in ([5] * 20, rng.integers(1, 9, size=30)):
        clusters = np.repeat(np.arange(len(sizes)), sizes)
        values = rng.random(len(clusters)) < np.repeat(rng.beta(1, 1, size=len(sizes)), sizes)
        assert icc(values, clusters.tolist()) == pytest.approx(
            brute_force_icc(values.astype(float).tolist(), clusters.tolist())
        )
    for values, clusters in (
        ([1, 1, 1], [0, 0, 1]),
        ([0, 1, 1], [0, 1, 2]),
        ([0, 1, 1], [0, 0, 0]),
    ):
        assert icc(values, clusters) == 0
    assert icc([0, 0, 1, 1], [0, 0, 1, 1]) == 1
    with pytest.raises(ValueError, match="as many of both"):
        icc([1], [1, 2])


def test_a_planted_icc_is_recovered():
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(400), 6)
    values = np.repeat(rng.normal(size=400), 6) * 0.3**0.5 + rng.normal(size=2400) * 0.7**0.5
    rho = icc(values, clusters.tolist())
    assert rho == pytest.approx(0.3, abs=0.04)
    fit = MixedLM(values, np.ones((2400, 1)), clusters).fit()
    assert rho == pytest.approx(fit.cov_re[0, 0] / (fit.cov_re[0, 0] + fit.scale), abs=0.005)


def test_the_design_effect_is_the_variance_ratio_of_means():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(40), 5)
    means = []
    sizes = []
    for _ in range(1500):
        # The correlation is 1 / (2 + 2 + 1).
        values = rng.random(200) < np.repeat(rng.beta(2, 2, size=40), 5)
        means.append(values.mean())
        sizes.append(effective_sample_size(values, clusters.tolist()))
    assert np.var(means) / (0.25 / 200) == pytest.approx(design_effect(5, 0.2), rel=0.1) == 1.8
    assert np.mean(sizes) == pytest.approx(200 / 1.8, rel=0.1)
    assert design_effect(5, -0.1) == 1
    assert effective_sample_size([0, 1], ["a", "a"]) == 1


def test_the_power_statement():
    sentence = plan_sentence(100, 100, depths=5)
    assert sentence == (
        "20 questions per depth, 100 per length, can tell methods apart that differ by 9 points "
        "or more (80 % power, if 10 % of the answers differ)."
    )
    assert required_pairs(0.09) <= 100 < required_pairs(0.08)
    shared = plan_sentence(100, 20)
    assert "100 questions per length about 20 texts, " in shared
    assert shared.endswith("; it takes 35 points if all answers about a text agree.")
    assert required_pairs(0.35) <= 20 < required_pairs(0.34)
    assert plan_sentence(20, 20).endswith(
        "(80 % power, if 10 % of the answers differ, or as many as it takes)."
    )
    assert plan_sentence(3, 3) == "3 questions per length: too few to tell any two methods apart."
    # The exact test flips the signs of texts: four of them have 16 ways, two of which are extreme.
    for num_texts, p in ((2, "0.5"), (4, "0.12"), (5, "0.062")):
        assert sign_flip([1] * num_texts, list(range(num_texts))) == least_p(num_texts)
        assert plan_sentence(64, num_texts, depths=16) == (
            f"4 questions per depth, 64 per length about {num_texts} texts: too few texts to tell "
            f"any two methods apart by a test, whose p is at least {p} then; the intervals say "
            "what can be said."
        )
    assert "can tell methods apart" in plan_sentence(66, 6)
