"""Intervals against published values, scipy and simulation."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ctxext.evals.stats import paired_bootstrap, ratio_bootstrap, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(10, 10, 72, 100), (20, 20, 84, 100), (50, 50, 93, 100), (100, 100, 96, 100), (500, 500, 99.2, 100),
     (18, 20, 70, 97), (90, 100, 83, 94.5), (450, 500, 87, 92)],
)  # fmt: skip
def test_wilson_gives_the_known_values(k, n, low, high):
    rate, lower, upper = wilson(k, n)
    assert rate == k / n
    assert lower is not None and upper is not None
    assert 100 * lower == pytest.approx(low, abs=0.5) and 100 * upper == pytest.approx(high, abs=0.5)


def test_wilson_equals_scipy_everywhere():
    for n in (1, 2, 7, 30, 501):
        for k in {0, 1, n // 3, n - 1, n}:
            expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
            np.testing.assert_allclose(wilson(k, n)[1:], [expected.low, expected.high], atol=1e-12)
    assert wilson(0, 9)[1] == 0 and wilson(9, 9)[2] == 1
    for k, n in ((0, 0), (3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="is not a rate"):
            wilson(k, n)


def test_wilson_covers():
    rng = np.random.default_rng(0)
    for p in (0.1, 0.5, 0.9):
        hits = rng.binomial(40, p, size=2000)
        bounds = [wilson(int(k), 40) for k in hits]
        covered = np.mean([low <= p <= high for _, low, high in bounds])
        assert 0.92 <= covered <= 0.98


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval_and_is_seeded():
    rng = np.random.default_rng(1)
    x = rng.normal(3, 2, size=400)
    mean, low, high = ratio_bootstrap(list(x), [1.0] * 400)
    se = x.std(ddof=1) / 20
    assert mean == pytest.approx(x.mean(), abs=1e-12)
    np.testing.assert_allclose([low, high], [mean - 1.96 * se, mean + 1.96 * se], atol=0.15 * se)
    assert ratio_bootstrap(list(x), [1.0] * 400) == (mean, low, high)
    assert ratio_bootstrap(list(x), [1.0] * 400, seed=5) != (mean, low, high)


def test_bootstrap_redraws_clusters_not_items():
    """Twenty copies of each of 50 values are 50 observations, not 1000."""
    x = np.random.default_rng(2).normal(size=50)
    alone = ratio_bootstrap(list(x), [1.0] * 50)
    copied = ratio_bootstrap(list(np.repeat(x, 20)), [1.0] * 1000, list(np.repeat(np.arange(50), 20)))
    np.testing.assert_allclose(copied, alone, atol=1e-12)
    naive = ratio_bootstrap(list(np.repeat(x, 20)), [1.0] * 1000)
    assert naive.high - naive.low < 0.4 * (alone.high - alone.low)


def test_clustered_bootstrap_covers():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        sizes = rng.integers(1, 6, size=60)
        effect = np.repeat(rng.normal(0.3, 1, size=60), sizes)
        a = rng.normal(size=len(effect))
        b = a + effect + 0.1 * rng.normal(size=len(effect))
        clusters = np.repeat(np.arange(60), sizes)
        _, low, high = paired_bootstrap(list(a), list(b), list(clusters), seed=trial, samples=400)
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_ratio_weights_by_denominator_and_says_when_it_knows_no_interval():
    assert ratio_bootstrap([10, 30], [1, 9]).value == 4
    assert ratio_bootstrap([10, 30], [1, 9], ["same", "same"]) == (4, None, None)
    assert paired_bootstrap([0, 1, 1], [1, 1, 0]).value == 0
    with pytest.raises(ValueError, match="all must be equally many"):
        ratio_bootstrap([], [])
    with pytest.raises(ValueError, match="are not pairs"):
        paired_bootstrap([1], [1, 2])
