"""Intervals against published values, scipy and simulation."""

import itertools

import numpy as np
import pytest
from scipy import optimize as scipy_optimize
from scipy import stats as scipy_stats
from scipy.optimize import isotonic_regression
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from ctxext.evals.stats import (
    EffectiveLength,
    Interval,
    effective_length,
    fieller_interval,
    holm,
    mcnemar,
    mean_difference,
    non_increasing,
    rate_difference,
    ratio_interval,
    sign_flip,
    wilson,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (10, 10, 72, 100),
        (20, 20, 84, 100),
        (50, 50, 93, 100),
        (100, 100, 96, 100),
        (500, 500, 99.2, 100),
        (18, 20, 70, 97),
        (90, 100, 83, 94.5),
        (450, 500, 87, 92),
    ],
)
def test_wilson_gives_the_known_values(k, n, low, high):
    rate, lower, upper = wilson(k, n)
    assert rate == k / n
    assert lower is not None
    assert upper is not None
    assert 100 * lower == pytest.approx(low, abs=0.5)
    assert 100 * upper == pytest.approx(high, abs=0.5)


def test_wilson_equals_scipy_everywhere():
    for n in (1, 2, 7, 30, 501):
        for k in {0, 1, n // 3, n - 1, n}:
            expected = scipy_stats.binomtest(k, n).proportion_ci(method="wilson")
            np.testing.assert_allclose(wilson(k, n)[1:], [expected.low, expected.high], atol=1e-12)
            np.testing.assert_allclose(
                wilson(k, n)[1:], proportion_confint(k, n, method="wilson"), atol=1e-12
            )
    assert wilson(0, 9)[1] == 0
    assert wilson(9, 9)[2] == 1
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


def test_the_interval_of_a_mean_is_student_s():
    x = np.random.default_rng(1).normal(3, 2, size=7)
    expected = scipy_stats.ttest_1samp(x, 0).confidence_interval()
    np.testing.assert_allclose(
        ratio_interval(x, np.ones(7)), [x.mean(), expected.low, expected.high], rtol=1e-12
    )
    assert ratio_interval(x, np.full(7, 2.0)) == ratio_interval(x / 2, np.ones(7))


def test_copies_of_an_item_add_nothing():
    """Twenty copies of each of 50 values are 50 observations, not 1000."""
    x = np.random.default_rng(2).normal(size=50)
    alone = ratio_interval(x, np.ones(50))
    clusters = np.repeat(np.arange(50), 20).tolist()
    copied = ratio_interval(np.repeat(x, 20), np.ones(1000), clusters)
    np.testing.assert_allclose(copied, alone, atol=1e-12)
    naive = ratio_interval(np.repeat(x, 20), np.ones(1000))
    assert naive.high - naive.low < 0.4 * (alone.high - alone.low)


@pytest.mark.parametrize("num_documents", [4, 8, 16])
@pytest.mark.parametrize("spread_of_sizes", [0.0, 0.5, 1.0])
def test_a_ratio_over_few_documents_is_covered(num_documents: int, spread_of_sizes: float):
    """Documents of different lengths and losses; quantiles of a bootstrap cover 0.77 of four."""
    rng = np.random.default_rng(num_documents)
    true_mean = 1.4
    covered = 0
    for _ in range(600):
        tokens = np.exp(rng.normal(6, spread_of_sizes, num_documents)).round() + 1
        losses = tokens * rng.normal(true_mean, 0.3, num_documents)
        _, low, high = ratio_interval(losses, tokens)
        covered += low <= true_mean <= high
    assert 0.925 <= covered / 600 <= 0.99


def test_two_documents_of_any_lengths_are_covered():
    """Kish's degrees of freedom are nearly 0 for the last; one degree is enough."""
    rng = np.random.default_rng(3)
    for tokens in ([500, 500], [200, 800], [20, 980]):
        intervals = [ratio_interval(x * tokens, tokens) for x in rng.normal(1.4, 0.3, (1000, 2))]
        assert 0.93 <= np.mean([low <= 1.4 <= high for _, low, high in intervals]) <= 0.985


def test_documents_without_tokens_do_not_count():
    tops = [3.0, 5.0, 4.0]
    bottoms = [2.0, 3.0, 3.0]
    assert ratio_interval([*tops, 0, 0], [*bottoms, 0, 0]) == ratio_interval(tops, bottoms)


def test_a_ratio_weights_by_the_denominator_and_may_have_no_interval():
    assert ratio_interval([10, 30], [1, 9]).value == 4
    assert ratio_interval([10, 30], [1, 9], ["same", "same"]) == (4, None, None)
    assert ratio_interval([10, 0], [1, 0]) == (10, None, None)
    assert mean_difference([0, 1, 1], [1, 1, 0]).value == 0
    # What never varied is not shown to be the same for all items.
    assert mean_difference([0.5, 0.7], [0.5, 0.7]) == (0, None, None)
    with pytest.raises(ValueError, match="all must be equally many"):
        ratio_interval([], [])
    with pytest.raises(ValueError, match="are not pairs"):
        mean_difference([1], [1, 2])


def test_the_interval_of_a_mean_difference_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 30))
    expected = scipy_stats.ttest_rel(b, a).confidence_interval()
    interval = mean_difference(a, b)
    np.testing.assert_allclose(interval[1:], [expected.low, expected.high], rtol=1e-12)


@pytest.mark.parametrize("pairs", [20, 40, 100])
@pytest.mark.parametrize("only_a, only_b", [(0.0, 0.02), (0.01, 0.01), (0.1, 0.3), (0.02, 0.5)])
def test_a_difference_of_rates_is_covered(pairs: int, only_a: float, only_b: float):
    """A bootstrap covers 0.32 of (0, 0.02) with 20 pairs, where it is [0, 0] in two of three."""
    rng = np.random.default_rng(pairs)
    counts = rng.multinomial(pairs, [only_a, only_b, 1 - only_a - only_b], size=1000)
    intervals = {
        (a, b): rate_difference(int(a), int(b), pairs) for a, b, _ in np.unique(counts, axis=0)
    }
    bounds = [intervals[a, b] for a, b, _ in counts]
    covered = np.mean([low <= only_b - only_a <= high for _, low, high in bounds])
    assert covered >= 0.92
    assert all(low < high for _, low, high in bounds)


def test_a_difference_of_rates_has_the_published_interval():
    """Of a table 1, 1, 7, 12 in Fagerland, Lydersen and Laake (10.1002/sim.6148)."""
    interval = rate_difference(1, 7, 21)
    np.testing.assert_allclose(interval, [6 / 21, 0.026, 0.517], atol=0.0005)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (3, 12), (1, 0), (0, 40), (25, 24)])
def test_bounds_of_a_difference_of_rates_are_where_the_score_test_rejects(only_a: int, only_b: int):
    """With the share that scipy finds to be the likeliest for each bound."""
    pairs = 50
    interval = rate_difference(only_a, only_b, pairs)
    for difference in interval[1:]:

        def minus_log_likelihood(share: float, difference: float = difference) -> float:
            shares = np.array([share, share + difference, 1 - 2 * share - difference])
            counts = np.array([only_a, only_b, pairs - only_a - only_b])
            return -float((counts * np.log(np.maximum(shares, 1e-300)))[counts > 0].sum())

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        share = scipy_optimize.minimize_scalar(
            minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        variance = pairs * (2 * share + difference - difference**2)
        score = abs(only_b - only_a - pairs * difference) / variance**0.5
        assert score == pytest.approx(1.959964, rel=1e-4)


def test_a_difference_of_rates_has_two_sides_and_an_effective_size():
    interval = rate_difference(3, 12, 50)
    mirrored = rate_difference(12, 3, 50)
    np.testing.assert_allclose(interval, [-mirrored.value, -mirrored.high, -mirrored.low])
    doubled = rate_difference(6, 24, 100, effective_pairs=50)
    np.testing.assert_allclose(doubled, interval, rtol=1e-9)
    with pytest.raises(ValueError, match="are not discordant counts"):
        rate_difference(3, 3, 5)


def test_without_clusters_correlated_items_look_more_certain_than_they_are():
    """Items of a haystack are right or wrong together: 20 documents of 5 items, difference 0.2."""
    rng = np.random.default_rng(6)
    covered = np.zeros(2)
    for _ in range(300):
        document = np.repeat(np.arange(20), 5)
        effect = np.repeat(rng.random((2, 20)) < [[0.5], [0.7]], 5, axis=1)
        for i, clusters in enumerate((document.tolist(), None)):
            _, low, high = mean_difference(effect[0], effect[1], clusters)
            covered[i] += low <= 0.2 <= high
    clustered, naive = covered / 300
    assert 0.89 <= clustered <= 0.98
    assert naive < 0.75


def test_mcnemar_equals_statsmodels_exact_test():
    for only_a, only_b in ((0, 0), (0, 5), (3, 9), (10, 10), (40, 21)):
        table = [[7, only_a], [only_b, 3]]
        assert mcnemar(only_a, only_b) == pytest.approx(
            statsmodels_mcnemar(table, exact=True).pvalue, abs=1e-12
        )
    with pytest.raises(ValueError, match="cannot be negative"):
        mcnemar(-1, 2)


def test_holm_equals_statsmodels():
    rng = np.random.default_rng(7)
    for size in (1, 2, 7, 30):
        p = rng.random(size) ** 3
        np.testing.assert_allclose(holm(p.tolist()), multipletests(p, method="holm")[1], atol=1e-15)
    assert holm([]) == []


def answers(rates: dict[int, float], n: int = 200) -> tuple[list[int], list[bool], list[int]]:
    """n items per length of which exactly a `rate` is right, each its own cluster."""
    lengths: list[int] = []
    correct: list[bool] = []
    for length, rate in rates.items():
        lengths += [length] * n
        correct += [i < round(rate * n) for i in range(n)]
    return lengths, correct, list(range(len(lengths)))


def test_effective_length_of_known_rates():
    # The threshold is 0.85 x 0.9 = 0.765.
    baseline = [True] * 90 + [False] * 10
    at = list(range(100))
    crossing = effective_length(*answers({256: 0.9, 512: 0.865, 1024: 0.665}), baseline, at)
    # Half way between 0.865 and 0.665.
    assert crossing.value == pytest.approx(2**9.5)
    assert crossing.censored == ""
    assert (crossing.low, crossing.high) == (512, 1024)
    above = effective_length(*answers({256: 0.9, 512: 0.9, 1024: 0.95}), baseline, at)
    assert (above.value, above.censored) == (1024, ">")
    below = effective_length(*answers({256: 0.5, 512: 0.9, 1024: 0.2}), baseline, at)
    assert (below.value, below.censored) == (256, "<")
    # Isotonic regression pools a dip with the rise after it.
    pooled = effective_length(*answers({256: 0.9, 512: 0.7, 768: 0.9, 1024: 0.1}), baseline, at)
    share = (0.8 - 0.765) / (0.8 - 0.1)
    assert pooled.value == pytest.approx(2 ** (np.log2(768) * (1 - share) + 10 * share))


def test_an_undetermined_effective_length_is_refused_or_wide():
    lengths, correct, at = answers({256: 0.9, 512: 0.9, 1024: 0.1})
    baseline = [True] * 20
    one_cluster = effective_length(lengths, correct, [0] * len(at), baseline, list(range(20)))
    assert (one_cluster.low, one_cluster.high) == (256, 1024)
    one_baseline_cluster = effective_length(lengths, correct, at, baseline, [0] * 20)
    assert (one_baseline_cluster.low, one_baseline_cluster.high) == (256, 1024)
    for tau in (0, 85):
        with pytest.raises(ValueError, match="0 < tau <= 1"):
            effective_length(lengths, correct, at, baseline, list(range(20)), tau=tau)
    with pytest.raises(ValueError, match="right answers of the baseline"):
        effective_length(lengths, correct, at, [False] * 20, list(range(20)))
    with pytest.raises(ValueError, match="equally many"):
        effective_length(lengths, correct[1:], at, baseline, list(range(20)))
    for p in (1.5, float("nan"), -0.1):
        with pytest.raises(ValueError, match="within 0 to 1"):
            holm([0.1, p])


def test_rates_are_those_of_isotonic_regression():
    rng = np.random.default_rng(8)
    for _ in range(50):
        counts = rng.integers(1, 30, size=6).astype(float)
        correct = rng.binomial(counts.astype(int), rng.random(6)).astype(float)
        expected = isotonic_regression(correct / counts, weights=counts, increasing=False).x
        np.testing.assert_allclose(
            non_increasing(correct[None], counts[None])[0], expected, atol=1e-12
        )


@pytest.mark.parametrize(("steepness", "middle"), [(2, 9.6), (4, 9.7), (8, 9.3), (20, 9.3)])
def test_the_interval_of_an_effective_length_covers_the_planted_one(steepness, middle):
    """Rates fall as a logistic in log2 length; items of one document share their luck.

    A percentile interval of the interpolated crossing covers 0 to 95 % of such curves (measured),
    as they are not straight between two lengths. Bounds at lengths that were tried cover all of
    them, but are coarse.
    """
    rng = np.random.default_rng(9)
    lengths = np.array([256, 512, 768, 1024])
    covered = 0
    trials = 150

    def rate(x):
        return 0.95 / (1 + np.exp(steepness * (x - middle)))

    grid = np.linspace(7, 12, 5001)
    truth = np.clip(2 ** grid[np.argmin(abs(rate(grid) - 0.85 * 0.95))], 256, 1024)
    for trial in range(trials):
        document = rng.integers(24, size=(4, 40))
        luck = rng.normal(size=24)[document] * 0.45 + rng.normal(size=(4, 40)) * 0.2**0.5 * 2
        correct = scipy_stats.norm.cdf(luck, scale=luck.std()) < rate(np.log2(lengths))[:, None]
        baseline = rng.random(40) < 0.95
        effective = effective_length(
            np.repeat(lengths, 40).tolist(),
            correct.ravel(),
            document.ravel().tolist(),
            baseline,
            list(range(40)),
            samples=300,
            seed=trial,
        )
        covered += effective.low <= truth <= effective.high
    assert covered / trials >= 0.93


def test_the_interval_of_an_effective_length_covers_with_four_documents():
    """Whose questions are right or wrong together; plain percentiles cover 0.75 of them."""
    rng = np.random.default_rng(9)
    lengths = np.array([256, 512, 768, 1024])
    rates = 0.95 / (1 + np.exp(2 * (np.log2(lengths) - 9.6)))
    truth = 2 ** (9.6 + np.log(1 / 0.85 - 1) / 2)
    document = np.tile(np.arange(4), 3).tolist()
    at = np.repeat(lengths, 12).tolist()
    covered = 0
    for trial in range(100):
        luck = rng.random(4)
        correct = np.concatenate([np.tile(luck < rate, 3) for rate in rates])
        baseline = np.tile(rng.random(4) < 0.95, 3)
        effective = effective_length(
            at, correct, document * 4, baseline, document, samples=300, seed=trial
        )
        covered += effective.low <= truth <= effective.high
    assert covered / 100 >= 0.92


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (3, 3), (1, 9), (0, 6), (12, 4)])
def test_sign_flip_with_clusters_of_one_is_mcnemar(only_a: int, only_b: int):
    differences = [-1] * only_a + [1] * only_b + [0] * 7
    assert sign_flip(differences, range(len(differences))) == pytest.approx(mcnemar(only_a, only_b))


def test_sign_flip_is_the_permutation_test_over_clusters():
    rng = np.random.default_rng(0)
    differences = rng.integers(-1, 2, 40)
    clusters = rng.integers(0, 9, 40)
    sums = np.array([differences[clusters == k].sum() for k in range(9)])
    every = np.array([np.dot(signs, sums) for signs in itertools.product((-1, 1), repeat=9)])
    assert sign_flip(differences.tolist(), clusters.tolist()) == pytest.approx(
        np.mean(abs(every) >= abs(sums.sum()))
    )
    moved = scipy_stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(differences.tolist(), clusters.tolist()) == pytest.approx(moved.pvalue)
    # One text shows nothing, however many questions are asked about it.
    assert sign_flip([1] * 20, [0] * 20) == 1.0


def test_intervals_format_themselves():
    interval = Interval(3.41, 3.36, 3.46)
    assert f"{interval:.2f}" == "3.41 [3.36, 3.46]"
    assert interval.bounds(".1f") == "[3.4, 3.5]"
    assert f"{Interval(-0.3, -5.2, 4.0):+z.0f}" == "+0 [-5, +4]"
    assert f"{Interval(0.5, None, None).scaled(100):.0f}" == "50"
    assert Interval(0.5, None, None).bounds(".0f", missing="none") == "none"
    assert Interval(0.9, 0.7, 0.97).scaled(100) == (90, 70, 97)
    open_above = EffectiveLength(1024, 768, 1024, ">").in_units_of(256)
    assert f"{open_above:.1f}" == "> 4.0 [3.0, > 4.0]"
    assert f"{EffectiveLength(256, 256, 512, '<'):.0f}" == "< 256 [< 256, 512]"


def test_fieller_is_the_set_of_ratios_that_a_t_test_does_not_refute():
    """By definition, with scipy's t test of y - r x on both sides of each bound."""
    rng = np.random.default_rng(4)
    x = rng.normal(8, 3, 12)
    y = 0.7 * x + rng.normal(0, 1.5, 12)
    interval = fieller_interval(y, x, range(12))
    assert interval.value == pytest.approx(y.mean() / x.mean())

    def p_value(ratio):
        return scipy_stats.ttest_1samp(y - ratio * x, 0).pvalue

    for bound in interval[1:]:
        assert p_value(bound) == pytest.approx(0.05, abs=1e-6)
    assert p_value(interval.low - 0.01) < 0.05 < p_value(interval.low + 0.01)
    # Three answers about each document count as one.
    tripled = fieller_interval(np.repeat(y, 3), np.repeat(x, 3), np.repeat(range(12), 3).tolist())
    assert tripled == pytest.approx(interval)


def test_fieller_has_no_bounds_where_the_denominator_may_be_zero():
    assert fieller_interval([1, 2], [3, 4], [0, 0])[1:] == (None, None)
    unsure = fieller_interval([1.0, 1.2, 0.9, 1.1], [1.0, -1.0, 1.5, -0.9], range(4))
    assert unsure[1:] == (None, None)
    with pytest.raises(ValueError, match="all must be equally many"):
        fieller_interval([1, 2], [1, 2], [0])
